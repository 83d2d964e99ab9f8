"""Scores on problems that training never sees, by data set if a file holds several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trd_engine.rows import load_rows
from tests.trd_engine.tiny_runs import events, spec, write_data
from trd_engine.config import parse_config
from trd_engine.data.problems import fingerprint
from trd_engine.evaluation.intervals import summarise
from trd_engine.training.loop import distil
from trd_engine.types import Problem


def named_rows(data: Path, names: list[str | None]) -> Path:
    """Write the held-out problems, each with the name of a data set."""
    path = data / "named.jsonl"
    lines = (data / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | ({"data_source": name} if name else {}) for line, name in zip(lines, names, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_scores_are_reported_for_each_dataset_that_rows_name(tmp_path: Path) -> None:
    names: list[str | None] = ["aime24", "hmmt25", "aime24", None, "hmmt25", "aime24"]
    data = write_data(tmp_path / "data", train=16, heldout=len(names))
    evaluation = {"dataset": {"path": str(named_rows(data, names))}, "k": 2}
    distil(parse_config(spec(data, evaluation=evaluation, optim={"batch_size": 16})), tmp_path / "run")
    for event in events(tmp_path / "run", "evaluation"):
        path = tmp_path / "run" / "evaluations" / f"step-{event['step']:08d}.jsonl"
        answers = [json.loads(line)["correct"] for line in path.read_text(encoding="utf-8").splitlines()]
        correct_PK = [answers[2 * place : 2 * place + 2] for place in range(len(names))]
        scores_by_dataset = event["detail"]["by_dataset"]
        assert list(scores_by_dataset) == ["aime24", "hmmt25"]
        for name, scores in scores_by_dataset.items():
            wanted = summarise([row for row, of in zip(correct_PK, names, strict=True) if of == name])
            assert (scores["num_problems"], scores["avg_at_k"]) == (names.count(name), wanted.avg_at_k)
            assert (scores["pass_low"], scores["pass_high"]) == (wanted.pass_low, wanted.pass_high)
        assert event["num_problems"] == len(names)


@pytest.mark.parametrize("names", [[None] * 3, ["aime24"] * 3])
def test_a_single_dataset_is_reported_once(tmp_path: Path, names: list[str | None]) -> None:
    data = write_data(tmp_path / "data", train=16, heldout=3)
    evaluation = {"dataset": {"path": str(named_rows(data, names))}, "k": 1}
    distil(parse_config(spec(data, evaluation=evaluation, optim={"batch_size": 16})), tmp_path / "run")
    assert [event["detail"]["by_dataset"] for event in events(tmp_path / "run", "evaluation")] == [{}, {}]


@pytest.mark.parametrize("column", ["benchmark", "data_source", "dataset"])
def test_the_name_is_read_from_its_columns_and_from_a_mapped_one(tmp_path: Path, column: str) -> None:
    row = {"problem": "1+1", "answer": "2"}
    (own,) = load_rows(tmp_path, row | {column: " aime24 "})
    (mapped,) = load_rows(tmp_path, row | {"of": "aime24"}, columns={column: "of"})
    (odd,) = load_rows(tmp_path, row | {column: {"name": "aime24"}})
    assert (own.benchmark, mapped.benchmark, odd.benchmark) == ("aime24", "aime24", None)


def test_checkpoints_of_before_there_were_names_are_resumed() -> None:
    """Their fingerprint covers what is trained on; how scores are grouped is no part of that."""
    problem = Problem("1", "1+1", "2")
    assert fingerprint([replace(problem, benchmark="aime24")]) == fingerprint([problem])
