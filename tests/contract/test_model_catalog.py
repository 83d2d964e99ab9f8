from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.model_catalog import ModelRefusedError, catalog_warning, parse_catalog, read_facts, vocabulary_difference


def write_model(folder: Path, *, tokens: dict[str, int] | None = None, **tokenizer: Any) -> Path:
    folder.mkdir(parents=True)
    model = {"vocab": tokens if tokens is not None else {"a": 0, "b": 1}, "merges": []}
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, **tokenizer}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_folders_and_hub_ids_are_named(tmp_path: Path) -> None:
    write_model(tmp_path / "all" / "one")
    write_model(tmp_path / "all" / "two")
    (tmp_path / "all" / "no-model").mkdir()
    catalog = parse_catalog(f"{tmp_path}/all/*, mine={tmp_path}/all/one, Org/Name@v2, short=Org/Other")
    assert list(catalog) == ["one", "two", "mine", "Org/Name", "short"]
    assert catalog["Org/Name"].revision == "v2"
    assert not catalog["short"].is_local
    assert catalog["mine"].source == str(tmp_path / "all" / "one")
    assert parse_catalog("") == {}
    assert "Org/Other without a revision" in str(catalog_warning(catalog))
    assert catalog_warning(parse_catalog(f"{tmp_path}/all/*,Org/Name@v2")) is None


def test_a_hub_id_that_is_also_a_folder_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "all" / "one")
    monkeypatch.chdir(tmp_path)
    catalog = parse_catalog("Org/Other,mine=all/one")
    assert not catalog["mine"].is_local
    assert str(catalog_warning(catalog)).endswith("or, for the folder of this name, ./all/one")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("a=Org/X,a=Org/Y", "names 'a' twice"),
        ("not-a-hub-id", "neither a folder"),
        ("x=also/not/one", "neither a folder"),
        ("https://huggingface.co/Org/Name", "neither a folder"),
        ("x=", "neither a folder"),
        ('Org/Name,"Org/Other"', "neither a folder"),
        ("Org/Name@", "lacks the revision"),
        ("x=/models/*", "one name to all models"),
        (" , ", "names no model"),
    ],
)
def test_a_bad_setting_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_catalog(setting)


def test_folders_without_a_model_are_warned_of(tmp_path: Path) -> None:
    assert "no model" in (catalog_warning(parse_catalog(f"{tmp_path}/absent/*")) or "")
    assert parse_catalog(f" {tmp_path}/one/ ")["one"].source == f"{tmp_path}/one"


def test_facts_come_from_the_folder(tmp_path: Path) -> None:
    facts = read_facts(write_model(tmp_path / "m", added_tokens=[{"content": "<end>", "id": 2}]))
    assert facts.context_tokens == 512
    assert facts.vocabulary == {"a": 0, "b": 1, "<end>": 2}


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path, file: str) -> None:
    folder = write_model(tmp_path / "m")
    (folder / file).write_text(json.dumps({"auto_map": {"AutoModel": "evil.py"}}))
    with pytest.raises(ModelRefusedError, match="never run"):
        read_facts(folder)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    for part in ({"quantization_config": {"quant_method": "fp8"}}, {"text_config": {"quantization_config": {"a": 1}}}):
        (folder / "config.json").write_text(json.dumps(part))
        with pytest.raises(ModelRefusedError, match="quantised"):
            read_facts(folder)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelRefusedError, match="safetensors"):
        read_facts(folder)


@pytest.mark.parametrize(("content", "word"), [("{", "not valid JSON"), ("[]", "not a JSON object")])
def test_an_unreadable_folder_is_refused(tmp_path: Path, content: str, word: str) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelRefusedError, match=word):
        read_facts(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelRefusedError, match=r"config\.json cannot be read"):
        read_facts(folder)


def test_an_older_file_of_the_same_tokenizer_is_no_other_tokenizer(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / name) for name in ("older", "newer", "other")]
    merges: list[list[Any]] = [["a b"], [["a", "b"]], [["b", "a"]]]
    for folder, listed in zip(folders, merges, strict=True):
        document = json.loads((folder / "tokenizer.json").read_text())
        document["model"] |= {"merges": listed} | ({} if folder.name == "older" else {"byte_fallback": False})
        (folder / "tokenizer.json").write_text(json.dumps(document))
    older, newer, other = map(read_facts, folders)
    assert vocabulary_difference(older, newer) is None
    assert "rules" in str(vocabulary_difference(older, other))


def test_the_first_difference_of_two_vocabularies_is_named(tmp_path: Path) -> None:
    one = read_facts(write_model(tmp_path / "1"))
    assert vocabulary_difference(one, read_facts(write_model(tmp_path / "2", padding={"length": 8}))) is None
    swapped = read_facts(write_model(tmp_path / "3", tokens={"b": 0, "a": 1}))
    assert vocabulary_difference(one, swapped) == (
        "token 'a' is 0 in the student's vocabulary and is 1 in the teacher's"
    )
    lacking = read_facts(write_model(tmp_path / "4", tokens={"a": 0}))
    assert "'b' is 1 in the student's vocabulary and is not in the teacher's" in str(
        vocabulary_difference(one, lacking)
    )
    larger = read_facts(write_model(tmp_path / "5", tokens={"a": 0, "b": 1, "c": 2}))
    assert "1 tokens that the student's lacks" in str(vocabulary_difference(one, larger))
    ruled = read_facts(write_model(tmp_path / "6", normalizer={"type": "Lowercase"}))
    assert "rules" in str(vocabulary_difference(one, ruled))
