"""Odd model folders are listed with their refusals, hide no other model, and break no request."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.model_catalog import parse_catalog
from service.models.service import read_shape
from tests.service.conftest import MakeClient, write_model
from tests.service.records import job_body


def replace(name: str, content: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(text)

    return change


def pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def directory(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def link(name: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def huge(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)  # without blocks on the disk


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (replace("config.json", b'{"max_position'), "not valid JSON"),
    "not-text": (replace("config.json", b"\xff\xfe\x00"), "not valid JSON"),
    "list": (replace("config.json", []), "not a JSON object"),
    "deep": (replace("config.json", b"[" * 100_000), "not valid JSON"),
    "dangling": (link("config.json", "/nowhere/config.json"), "cannot be read"),
    "ring": (link("config.json", "config.json"), "cannot be read"),
    "directory": (directory, "is not a file"),
    "pipe": (pipe, "is not a file"),
    "device": (link("tokenizer.json", "/dev/zero"), "is not a file"),
    "huge": (huge, "over the limit"),
    "model-list": (replace("tokenizer.json", {"model": [1]}), "does not describe a tokenizer"),
    "vocab-text": (replace("tokenizer.json", {"model": {"vocab": "abc"}}), "does not describe a tokenizer"),
    "vocab-ids": (replace("tokenizer.json", {"model": {"vocab": {"a": "0"}}}), "does not describe a tokenizer"),
    "vocab-pairs": (replace("tokenizer.json", {"model": {"vocab": [[], [["a"]]]}}), "does not describe a tokenizer"),
    "added-null": (replace("tokenizer.json", {"added_tokens": None}), "does not describe a tokenizer"),
    "added-empty": (replace("tokenizer.json", {"added_tokens": [{}]}), "does not describe a tokenizer"),
    "merges": (replace("tokenizer.json", {"model": {"vocab": {}, "merges": [1]}}), "does not describe a tokenizer"),
    "odd-settings": (replace("tokenizer_config.json", [1]), "not a JSON object"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors"),
}
HARMLESS: dict[str, Callable[[Path], None]] = {
    "context-text": replace("config.json", {"max_position_embeddings": "512"}),
    "context-huge": replace("config.json", {"max_position_embeddings": 10**40}),
    "context-true": replace("config.json", {"max_position_embeddings": True}),
    "half-pair": replace("tokenizer.json", b'{"model": {"vocab": {"\\ud800": 0}}}'),
}


@pytest.fixture
def odd_models(tmp_path: Path) -> Path:
    folder = tmp_path / "odd"
    for name, change in {**{name: change for name, (change, _) in ODD.items()}, **HARMLESS}.items():
        write_model(folder / name, context=1024)
        change(folder / name)
    write_model(folder / "good", context=1024)
    write_model(Path(os.fsdecode(bytes(folder) + b"/latin-\xe9")), context=1024)
    return folder


def test_odd_folders_are_listed_with_their_refusals(make_client: MakeClient, sqlite_url: str, odd_models: Path) -> None:
    client = make_client(sqlite_url, models=f"{odd_models}/*")
    response = client.get("/models")
    assert response.status_code == 200
    listed = {model["id"]: model for model in response.json()["data"]}
    assert listed.keys() == {*ODD, *HARMLESS, "good", "latin-\N{REPLACEMENT CHARACTER}"}
    for name, (_, reason) in ODD.items():
        assert reason in listed[name]["refusal"], name
        assert client.get(f"/models/{name}").json() == listed[name]
    for name in (*HARMLESS, "good"):
        assert listed[name]["refusal"] is None, name
        assert listed[name]["vocabulary_tokens"] > 0
    assert [listed[name]["context_tokens"] for name in HARMLESS] == [None, None, None, 1024]


def test_a_job_that_names_an_odd_folder_is_refused(make_client: MakeClient, sqlite_url: str, odd_models: Path) -> None:
    client = make_client(sqlite_url, models=f"{odd_models}/*")
    body = job_body(client, student="good", teacher="good")
    for name, (_, reason) in ODD.items():
        error = client.post("/jobs?dry_run=true", json={**body, "teacher": name})
        assert (error.status_code, error.json()["error"]["code"]) == (422, "model_refused"), name
        assert reason in error.json()["error"]["message"]
    assert client.post("/jobs?dry_run=true", json=body).status_code == 200


def test_a_folder_that_appears_later_under_a_taken_name_hides_nothing(
    make_client: MakeClient, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.models.service.CATALOG_SECONDS", -1.0)
    write_model(tmp_path / "one" / "small", context=1024)
    (tmp_path / "two").mkdir()
    write_model(tmp_path / "mine", context=512)
    client = make_client(sqlite_url, models=f"{tmp_path}/one/*,{tmp_path}/two/*,other={tmp_path}/mine")
    write_model(tmp_path / "two" / "small", context=2048)
    write_model(tmp_path / "two" / "other", context=2048)
    listed = {model["id"]: model["context_tokens"] for model in client.get("/models").json()["data"]}
    assert listed == {
        "small": 1024,
        f"{tmp_path}/two/small": 2048,
        f"{tmp_path}/two/other": 2048,
        "other": 512,
    }


def test_names_that_are_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names 'a' twice"):
        parse_catalog(f"a={tmp_path}/x,b={tmp_path}/y,a={tmp_path}/z")


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": "64"},
        {"num_key_value_heads": [2]},
        {"hidden_size": True},
        {"hidden_size": 10**30},
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"head_dim": 1.5},
    ],
)
def test_sizes_of_a_wrong_type_are_unknown(changes: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "vocab_size": 32}))
    assert read_shape(tmp_path) is not None
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "vocab_size": 32, **changes}))
    assert read_shape(tmp_path) is None
