"""What several runs of the grid draw alike is drawn once, and changes no run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper import runner
from benchmarks.paper.grid import Cell
from benchmarks.paper.rows import Row
from benchmarks.paper.runner import Places, run_cell
from tests.trd_engine.tiny_runs import MODELS

CELL = Cell("main", "opd", "gap", "trd", 1e-2, 0, num_train=32)
OTHERS = {
    "the same rollout": replace(CELL, variant="reverse_kl"),
    "the same rollout, another teacher": replace(CELL, teaching="opsd"),
    "another seed": replace(CELL, seed=1),
    "an adapter": replace(CELL, lora=True),
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(runner, "NUM_HELDOUT", 8)
    runner._write_problems([CELL], tmp_path / "data")
    return Places(tmp_path / "data", MODELS, tmp_path / "runs", tmp_path / "rows.jsonl", tmp_path / "samples")


def without_seconds(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in ("seconds_by_phase", "cpu_seconds", "diagnosis")}


def files(places: Places) -> set[str]:
    return {path.name for path in places.samples.iterdir()} if places.samples.exists() else set()


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_run_beside_others_is_the_run_alone(other: Cell, places: Places, tmp_path: Path) -> None:
    run_cell(CELL, places, "here")
    beside = run_cell(other, places, "here")
    alone = run_cell(other, replace(places, samples=tmp_path / "none yet"), "here")
    assert without_seconds(beside) == without_seconds(alone)
    assert alone["after"] != alone["before"] or not alone["before"]


def test_only_untrained_models_answers_are_kept_and_found_again(places: Places) -> None:
    def sizes_after(cell: Cell) -> list[int]:
        """How many completions each new file has."""
        before = files(places)
        run_cell(cell, places, "here")
        new = [places.samples / name for name in files(places) - before]
        return sorted(len(json.loads(path.read_text(encoding="utf-8"))) for path in new)

    # The probe of the sampler, then rollouts and refinements: of the held-out yardstick, and those that are trained on.
    # The score at the end is not.
    assert sizes_after(CELL) == [4, 8, 8, 32, 32]
    assert sizes_after(OTHERS["the same rollout"]) == []
    assert sizes_after(OTHERS["the same rollout, another teacher"]) == [8, 32]
    assert sizes_after(OTHERS["another seed"]) == [4, 8, 8, 32, 32]


def test_a_run_whose_seconds_count_draws_all_itself(places: Places) -> None:
    run_cell(replace(CELL, section="timing"), places, "here")
    assert not files(places)
