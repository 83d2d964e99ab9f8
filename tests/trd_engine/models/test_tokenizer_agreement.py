"""Tokenizers that agree token for token, and every way in which they may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trd_engine.tiny_runs import MODELS, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.models.tokenizer_agreement import require_same_ids, require_same_tokenizer
from trd_engine.runtime.errors import TokenizerMismatchError
from trd_engine.training.loop import distil
from trd_engine.training.model_setup import load_tokenizers


def altered(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy the teacher with a changed tokenizer.json."""
    shutil.copytree(MODELS / "tiny-teacher", folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder


def _swap(document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]


def _add(document: dict[str, Any]) -> None:
    new = {"id": len(document["model"]["vocab"]) + 40, "content": "<new>", "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document["added_tokens"].append({**new, **flags})


def _normalise(document: dict[str, Any]) -> None:
    document["normalizer"] = {"type": "Lowercase"}


def _strip(document: dict[str, Any]) -> None:
    document["added_tokens"][-1]["lstrip"] = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_swap, r"token '[12]' is \d+ in the student's tokenizer and \d+ in the teacher's"),
        (_add, "'<new>' of the teacher's tokenizer is absent"),
        (_normalise, r"normalizer of the student's tokenizer is .* and of the teacher's .*Lowercase"),
        (_strip, "added_tokens of the student's tokenizer is"),
    ],
)
def test_a_difference_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    student = AutoTokenizer.from_pretrained(MODELS / "tiny-student")
    require_same_tokenizer(student, AutoTokenizer.from_pretrained(MODELS / "tiny-teacher"))
    other = AutoTokenizer.from_pretrained(altered(tmp_path / "teacher", change))
    with pytest.raises(TokenizerMismatchError, match=words):
        require_same_tokenizer(student, other)


@pytest.mark.parametrize(("ours", "theirs", "place"), [([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [4], 0)])
def test_the_first_token_that_differs_is_named(ours: list[int], theirs: list[int], place: int) -> None:
    require_same_ids("abc", theirs, theirs, teacher="the teacher")
    with pytest.raises(TokenizerMismatchError, match=f"'abc' .* from token {place} on"):
        require_same_ids("abc", ours, theirs, teacher="the teacher")


def test_a_teacher_that_stops_otherwise_is_refused(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "tiny-teacher", tmp_path / "teacher")
    path = tmp_path / "teacher" / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**settings, "eos_token_id": [5]}), encoding="utf-8")
    config = parse_config(spec(write_data(tmp_path / "data"), teacher=str(tmp_path / "teacher")))
    with pytest.raises(TokenizerMismatchError, match="does not end the student's; add it to eos_token_id"):
        load_tokenizers(config)


def test_a_padded_head_is_no_difference(tmp_path: Path) -> None:
    """A teacher whose head has rows that no token names trains like the unpadded one, except for those rows' mass."""
    folder = tmp_path / "padded"
    shutil.copytree(MODELS / "tiny-teacher", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    num_rows = model.get_output_embeddings().weight.shape[0] + 13
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    model.save_pretrained(folder)
    data = write_data(tmp_path / "data", train=16, heldout=8)
    for out, teacher in (("plain", MODELS / "tiny-teacher"), ("padded", folder)):
        changes = {"teacher": str(teacher), "mode": "opd", "loss": {}, "evaluation": {"holdout": 0.0}}
        distil(parse_config(spec(data, **changes)), tmp_path / out)
    assert metric(tmp_path / "padded", "loss") == pytest.approx(metric(tmp_path / "plain", "loss"), rel=1e-4)
