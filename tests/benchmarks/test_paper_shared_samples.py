"""What several runs of the grid draw alike is drawn once, and changes no run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper import grid, runner
from benchmarks.paper.grid import Cell
from benchmarks.paper.rows import Row
from benchmarks.paper.runner import Places, run_cell
from tests.trd_engine.tiny_runs import MODELS

CELL = Cell("main", "opd", "gap", "trd", 1e-2, 0, num_train=16)
OTHERS = {
    "the same rollout": replace(CELL, variant="reverse_kl"),
    "the same rollout, another teacher": replace(CELL, teaching="opsd"),
    "another seed": replace(CELL, seed=1),
    "an adapter": replace(CELL, lora=True),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The problems of all runs, few of them held out; few answers are scored and diagnosed."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "NUM_HELDOUT", 8)
        patch.setitem(grid.K, "heldout", 2)
        patch.setattr(grid, "NUM_DIAGNOSED", 2)
        runner.write_problems([CELL], folder)
        yield folder


def places_in(folder: Path, data: Path) -> Places:
    return Places(data, MODELS, folder / "runs", folder / "rows.jsonl", folder / "samples")


@pytest.fixture
def places(data: Path, tmp_path: Path) -> Places:
    return places_in(tmp_path, data)


@pytest.fixture(scope="module")
def beside(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Row, list[int]]]:
    """The rows of `CELL` and then of `OTHERS`, with one store; and how many completions each new file has."""
    places = places_in(tmp_path_factory.mktemp("drawn"), data)
    made = {}
    for name, cell in {"first": CELL, **OTHERS}.items():
        before = files(places)
        row = run_cell(cell, places, "here")
        new = [places.samples / file for file in files(places) - before]
        made[name] = row, sorted(len(json.loads(path.read_text(encoding="utf-8"))) for path in new)
    return made


def without_seconds(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in ("seconds_by_phase", "cpu_seconds", "diagnosis")}


def files(places: Places) -> set[str]:
    return {path.name for path in places.samples.iterdir()} if places.samples.exists() else set()


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_beside_others_is_the_run_alone(
    name: str, beside: dict[str, tuple[Row, list[int]]], places: Places
) -> None:
    alone = run_cell(OTHERS[name], places, "here")
    assert without_seconds(beside[name][0]) == without_seconds(alone)


def test_only_untrained_models_answers_are_kept_and_found_again(beside: dict[str, tuple[Row, list[int]]]) -> None:
    # The probe of the sampler, then rollouts and refinements: of the held-out batch, and those that are trained on.
    # The score at the end is not.
    assert beside["first"][1] == [4, 8, 8, 16, 16]
    assert beside["the same rollout"][1] == []
    assert beside["the same rollout, another teacher"][1] == [8, 16]
    assert beside["another seed"][1] == [4, 8, 8, 16, 16]


def test_a_run_whose_seconds_count_draws_all_itself(places: Places) -> None:
    run_cell(replace(CELL, section="timing"), places, "here")
    assert not files(places)
