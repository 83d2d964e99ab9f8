"""The grid of the paper in small: distinct cells, legal specs, and a report that follows from rows."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper import grid, learning_rates, report, runner
from benchmarks.paper.grid import Cell, engine_spec
from benchmarks.paper.rows import append_row, read_rows
from benchmarks.paper.runner import Places, run_cells
from benchmarks.paper.summary import difference, estimate
from benchmarks.paper.variants import VARIANTS
from tests.trd_engine.tiny_runs import MODELS
from trd_engine.config import parse_config

RATES = dict.fromkeys(itertools.product(("opd", "opsd"), grid.STUDENTS, VARIANTS), 0.001)


def test_every_cell_is_a_run_of_its_own_and_a_legal_spec(tmp_path: Path) -> None:
    cells = [
        *grid.learning_rate_cells(),
        *grid.main_cells(RATES),
        *grid.control_cells(RATES),
        *grid.round_cells(RATES),
        *grid.lora_cells(RATES),
    ]
    assert len({cell.id for cell in cells}) == len(cells)
    for cell in cells:
        config = parse_config(engine_spec(cell, data=tmp_path, models=MODELS))
        assert config.is_privileged == (cell.teaching == "opsd")
        assert config.refines == VARIANTS[cell.variant].refines


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A grid of small runs: a step on 16 problems."""
    monkeypatch.setattr(runner, "NUM_HELDOUT", 8)
    return Places(tmp_path / "data", MODELS, tmp_path / "runs", tmp_path / "docs" / "results" / "runs.jsonl")


def test_runs_become_rows_once_and_rows_become_a_report(places: Places, tmp_path: Path) -> None:
    cells = [Cell("main", "opd", "gap", variant, 1e-3, 0, num_train=16) for variant in ("reverse_kl", "trd")]
    run_cells(cells[:1], places, num_processes=1)
    run_cells(cells, places, num_processes=1)
    rows = read_rows(places.rows)
    assert [row["id"] for row in rows] == [cell.id for cell in cells]
    for row in rows:
        assert row["after"]["k"] == 8
        assert len(row["after"]["num_correct"]) == 8
        assert row["sampled_tokens"]["rollout"][0] > 0
    assert rows[0]["sampled_tokens"]["refined"] == [0] != rows[1]["sampled_tokens"]["refined"]
    page = tmp_path / "docs" / "paper.md"
    report.write(rows, places.rows.parent, page)
    text = page.read_text(encoding="utf-8")
    assert "OPD, gap: TRD **" in text
    assert (places.rows.parent / "main.svg").stat().st_size > 1000
    report.write(rows, places.rows.parent, page)
    assert page.read_text(encoding="utf-8") == text


def test_the_rate_with_the_best_validation_score_is_chosen(tmp_path: Path) -> None:
    for rate, num_correct in ((1e-3, [2, 4]), (3e-3, [4, 4]), (3e-4, [4, 4])):
        cell = {
            "section": "learning_rate",
            "teaching": "opd",
            "student": "gap",
            "variant": "trd",
            "learning_rate": rate,
        }
        append_row(tmp_path / "rows.jsonl", {"cell": cell, "after": {"k": 4, "num_correct": num_correct}})
    rates = learning_rates.choose(read_rows(tmp_path / "rows.jsonl"))
    assert rates == {("opd", "gap", "trd"): 3e-4}
    learning_rates.write(tmp_path / "rates.json", rates)
    assert learning_rates.read(tmp_path / "rates.json") == rates


def test_an_interval_covers_seeds_and_problems_and_a_pair_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    easy_P = rng.random(200)
    scores_SP = np.clip(easy_P + rng.normal(0, 0.02, (5, 200)), 0, 1)
    whole = estimate(scores_SP)
    assert whole.low < scores_SP.mean() < whole.high
    assert whole.high - whole.low > 0.05
    gain = difference(scores_SP, scores_SP - 0.03)
    assert gain.mean == pytest.approx(0.03)
    assert gain.high - gain.low < 1e-6
