"""One finished run as one row: its factors, its results by problem, and its reported metrics."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.paper.grid import Cell
from testbed.task import WAIT

Row = dict[str, Any]
"""``cell`` (its factors), ``before`` (for one run per setting or variant) and ``after`` (see `_score`), ``curve`` (the
score after each round, if there are several), ``rounds`` (metrics of each collection), ``first_step`` and
``last_step`` (of these optimizer steps, before their update), ``seconds_by_phase``, ``cpu_seconds`` (of the whole run
including evaluation; other load affects it less; neither counts samples shared with other runs, see `shared_samples`,
except in section *timing*), ``sampled_tokens`` (of each round), ``diagnosis`` and
``machine``."""


def read_rows(path: Path) -> list[Row]:
    """Return the rows in the file; none without a file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append_row(path: Path, row: Row) -> None:
    """Append a row in one write, so that an interrupted run leaves no partial row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()


def make_row(cell: Cell, out_dir: Path, machine: str, cpu_seconds: float) -> Row:
    """Return the row of the finished run in `out_dir`."""
    events = list(_events(out_dir))
    finished = events[-1]
    assert finished["type"] == "finished", finished
    metrics = [e for e in events if e["type"] == "metrics"]
    scores = {int(path.stem.removeprefix("step-")): _score(path) for path in sorted(out_dir.glob("evaluations/*"))}
    totals: dict[str, list[int]] = {"rollout": [], "refined": []}
    for path in sorted((out_dir / "rounds").glob("*/trajectories.jsonl")):
        trajectories = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        totals["rollout"].append(sum(t["rollout_tokens"] for t in trajectories))
        totals["refined"].append(sum(t["refined_tokens"] or 0 for t in trajectories))
    rounds: dict[int, dict[str, float]] = defaultdict(dict)
    collected: set[int] = set()
    for event in metrics:
        number, values = event["round"], event["values"]
        if "rollout_accuracy" in values:
            collected.add(number)
        if number in collected and "loss" not in values and "heldout_forward_kl" not in values:
            rounds[number].update({name: _rounded(value) for name, value in values.items() if value is not None})
    return {
        "id": cell.id,
        "cell": asdict(cell),
        "before": scores.pop(0, None),
        "after": scores[finished["step"]],
        "curve": list(scores.values()) if cell.rounds > 1 else [],
        "num_steps": finished["step"],
        "rounds": [rounds[number] for number in sorted(collected)],
        "first_step": _step_metrics(metrics, 0),
        "last_step": _step_metrics(metrics, -1),
        "heldout_forward_kl": [
            _rounded(e["values"]["heldout_forward_kl"]) for e in metrics if "heldout_forward_kl" in e["values"]
        ],
        "seconds_by_phase": {k: round(v, 2) for k, v in finished["summary"]["seconds_by_phase"].items()},
        "cpu_seconds": round(cpu_seconds, 2),
        "sampled_tokens": totals,
        "diagnosis": [e for e in events if e["type"] == "diagnosis"],
        "machine": machine,
    }


def _events(out_dir: Path) -> Iterator[dict[str, Any]]:
    for line in (out_dir / "events.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _score(path: Path) -> dict[str, Any]:
    """Return k, the number of correct samples of each problem (in the order of the problems), their mean length, the
    number of samples that restart, and how many of these are correct."""
    answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    correct: dict[str, int] = defaultdict(int)
    for answer in answers:
        correct[answer["problem_id"]] += answer["correct"]
    restarting = [answer["correct"] for answer in answers if WAIT in answer["text"]]
    return {
        "k": len({answer["sample"] for answer in answers}),
        "num_correct": list(correct.values()),
        "mean_tokens": round(sum(answer["num_tokens"] for answer in answers) / len(answers), 2),
        "num_restarting": len(restarting),
        "num_restarting_correct": sum(restarting),
    }


def _step_metrics(metrics: list[dict[str, Any]], index: int) -> dict[str, float]:
    values = [event["values"] for event in metrics if "loss" in event["values"]][index]
    return {name: _rounded(value) for name, value in values.items() if value is not None and "second" not in name}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
