"""Scores on problems that training never sees, by data set where a file holds several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trd_engine.tiny_runs import events, spec, write_data
from trd_engine.config import DataSource, parse_config
from trd_engine.data import load_problems
from trd_engine.statistics import summarise
from trd_engine.train import run


def named_rows(data: Path, names: list[str | None]) -> Path:
    """The held-out problems, each of the data set that the row then names."""
    path = data / "named.jsonl"
    lines = (data / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | ({"data_source": name} if name else {}) for line, name in zip(lines, names, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_scores_are_told_for_each_data_set_that_rows_name(tmp_path: Path) -> None:
    names: list[str | None] = ["aime24", "hmmt25", "aime24", None, "hmmt25", "aime24"]
    data = write_data(tmp_path / "data", train=16, heldout=len(names))
    evaluation = {"dataset": {"path": str(named_rows(data, names))}, "k": 2}
    run(parse_config(spec(data, evaluation=evaluation, optim={"batch_size": 16})), tmp_path / "run")
    for event in events(tmp_path / "run", "evaluation"):
        path = tmp_path / "run" / "evaluations" / f"step-{event['step']:08d}.jsonl"
        answers = [json.loads(line)["correct"] for line in path.read_text(encoding="utf-8").splitlines()]
        correct_PK = [answers[2 * place : 2 * place + 2] for place in range(len(names))]
        told = event["detail"]["by_dataset"]
        assert list(told) == ["aime24", "hmmt25"]
        for name, scores in told.items():
            wanted = summarise([row for row, of in zip(correct_PK, names, strict=True) if of == name])
            assert (scores["num_problems"], scores["avg_at_k"]) == (names.count(name), wanted.avg_at_k)
            assert (scores["pass_low"], scores["pass_high"]) == (wanted.pass_low, wanted.pass_high)
        assert event["num_problems"] == len(names)


@pytest.mark.parametrize("names", [[None] * 3, ["aime24"] * 3])
def test_one_data_set_is_told_once(tmp_path: Path, names: list[str | None]) -> None:
    data = write_data(tmp_path / "data", train=16, heldout=3)
    evaluation = {"dataset": {"path": str(named_rows(data, names))}, "k": 1}
    run(parse_config(spec(data, evaluation=evaluation, optim={"batch_size": 16})), tmp_path / "run")
    assert [event["detail"]["by_dataset"] for event in events(tmp_path / "run", "evaluation")] == [{}, {}]


def test_a_name_does_not_change_what_is_trained_on(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=16, heldout=3)
    named = [load_problems(DataSource(path=str(named_rows(data, [name] * 3))), "math") for name in ("a", "b")]
    assert [[p.benchmark for p in loaded.problems] for loaded in named] == [["a"] * 3, ["b"] * 3]
