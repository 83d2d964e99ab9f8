"""The engine as a library: own problems, an own task and a callback; a broken spec is reported without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trd_engine
from tests.trd_engine.tiny_runs import events, spec
from trd_data.templates import EXACT
from trd_engine import EngineError, Problem, RunConfig, Task, Verdict, distil, evaluate

ROOT = Path(__file__).parents[2]


class Shortest(Task):
    """Accepts completions of at most the length that the problem names."""

    name = "shortest"
    prompts = EXACT

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        return Verdict(len(completion_text) <= int(problem.answer), str(len(completion_text)))


def config(**changes: Any) -> RunConfig:
    document = spec(Path("unused"), evaluation={"holdout": 0.25, "k": 2}, **changes)
    return RunConfig.model_validate({**document, "dataset": None})


def test_own_problems_an_own_task_and_a_callback(tmp_path: Path) -> None:
    rows = [{"problem": f"{i}+1", "answer": "30"} for i in range(1, 9)]
    seen: list[dict[str, Any]] = []
    result = distil(config(), tmp_path / "run", problems=rows, task=Shortest(), on_event=seen.append)
    assert [row.step for row in result.scores] == [0, 1]
    assert (result.checkpoint / "model" / "config.json").is_file()
    assert seen == [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    trajectories = (tmp_path / "run" / "rounds" / "0000" / "trajectories.jsonl").read_text().splitlines()
    assert {line["rollout_correct"] for line in map(json.loads, trajectories)} <= {True, False}
    assert all(line["detail"]["rollout_verdict"] == str(len(line["rollout"])) for line in map(json.loads, trajectories))

    problems = [Problem(str(i), f"{i}+1", "0") for i in range(3)]
    score = evaluate(config(), result.checkpoint, tmp_path / "scores", problems=problems, task=Shortest())
    assert (score.num_problems, score.avg_at_k) == (3, 0.0)
    assert events(tmp_path / "scores", "evaluation")[0]["num_problems"] == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "problems: no rows"),
        ([{"problem": "1+1"}], r"problems: row 1: .*answer"),
        ([Problem("a", "1+1", "2"), Problem("a", "1+2", "3")], "two have the same id"),
        (None, "dataset: give a path"),
    ],
)
def test_broken_problems_are_named(rows: list[Any] | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=message):
        distil(config(), tmp_path, problems=rows)


def test_every_public_name_is_there() -> None:
    for name in trd_engine.__all__:
        assert getattr(trd_engine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'distill'"):
        trd_engine.distill  # noqa: B018


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"mode": "trd"}, "invalid_spec: student: Field required"),
        ({"mode": "opd", "student": "a", "teacher": "b"}, "invalid_spec: dataset: this field is required"),
    ],
)
def test_a_broken_spec_is_reported_without_torch(document: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(document))
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    command = [sys.executable, "-m", "trd_engine", "run", "spec.json", "--out", "out"]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr[: len(message)]) == (1, message)


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.library", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "avg@2: " in done.stdout
