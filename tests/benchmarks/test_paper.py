"""The grid of the paper in small: distinct cells, legal specs, and a report that follows from rows."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper import grid, report, runner, sections
from benchmarks.paper.catch_up import catch_up_table
from benchmarks.paper.claims import NOT_RUN, Claim
from benchmarks.paper.grid import Cell, cells_of, engine_spec
from benchmarks.paper.rows import Row, append_row, read_rows
from benchmarks.paper.runner import Places, run_cells
from benchmarks.paper.sections import compared_cells
from benchmarks.paper.summary import difference, estimate, group, merge
from benchmarks.paper.tables import score_table
from benchmarks.paper.variants import VARIANTS
from tests.trd_engine.tiny_runs import MODELS
from trd_engine.config import parse_config

RATES = dict.fromkeys(itertools.product(("opd", "opsd"), grid.MAIN_STUDENTS, (grid.TEACHER,), VARIANTS), 0.001)


def test_every_cell_is_a_run_of_its_own_and_a_legal_spec(tmp_path: Path) -> None:
    cells = [
        *grid.learning_rate_cells(),
        *(cell for name in ("main", "controls", "rounds", "lora", "other_models") for cell in cells_of(name, RATES)),
        *cells_of("timing", RATES, [0]),
    ]
    assert len({cell.id for cell in cells}) == len(cells)
    for cell in cells:
        config = parse_config(engine_spec(cell, data=tmp_path, models=MODELS))
        assert config.is_privileged == (cell.teaching == "opsd")
        assert config.refines == VARIANTS[cell.variant].refines


def test_the_untrained_student_is_scored_where_the_report_shows_it_and_no_more(tmp_path: Path) -> None:
    def scored(cells: list[Cell]) -> list[tuple[str, str]]:
        specs = [engine_spec(cell, data=tmp_path, models=MODELS) for cell in cells]
        return [(c.teaching, c.student) for c, s in zip(cells, specs, strict=True) if s["evaluation"]["at_start"]]

    settings = list(itertools.product(("opd", "opsd"), grid.MAIN_STUDENTS))
    for section in ("main", "controls", "lora", "other_models"):
        assert scored(cells_of(section, RATES)) == settings
    assert sorted(scored(cells_of("rounds", RATES))) == sorted(settings * len(grid.MAIN))
    assert scored(cells_of("timing", RATES, [0])) == []


def test_only_what_the_report_compares_is_timed() -> None:
    cells = cells_of("timing", RATES, [0])
    assert compared_cells(cells, {}) == cells
    rows = [
        make_row(name, 0, [score], 1, section)
        for section, best in (("main", "reverse_kl"), ("rounds", "forward_kl"))
        for name, score in ((best, 0.9), ("reverse_kl_topk", 0.5), ("trd", 1.0))
    ]
    compared = compared_cells(cells, group(rows))
    of_setting = [cell.variant for cell in compared if (cell.teaching, cell.student) == ("opd", "gap")]
    assert of_setting == ["forward_kl", "reverse_kl", "trd"]
    assert len(compared) == 3 * len(grid.MAIN) + 3


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A grid of small runs: a step on 16 problems."""
    monkeypatch.setattr(runner, "NUM_HELDOUT", 8)
    rows = tmp_path / "docs" / "results" / "runs.jsonl"
    return Places(tmp_path / "data", MODELS, tmp_path / "runs", rows, tmp_path / "samples")


def test_runs_become_rows_once_and_rows_become_a_report(places: Places, tmp_path: Path) -> None:
    cells = [Cell("main", "opd", "gap", variant, 1e-3, 0, num_train=16) for variant in ("reverse_kl", "trd")]
    runner.write_problems(cells, places.data)
    append_row(places.rows, runner.run_cell(cells[0], places, "here"))
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
    assert "- One round, against the best baseline, in points of avg@8: TRD **" in text
    for name in ("main", "fragmented"):
        assert (places.rows.parent / f"{name}.svg").stat().st_size > 1000
    assert "| OPD, gap | y_r, refine |" in text
    report.write(rows, places.rows.parent, page)
    assert page.read_text(encoding="utf-8") == text
    other = rows[1] | {"machine": "another"}
    append_row(places.rows.parent / report.AGAIN_ROWS_FILE, other)
    report.write(rows, places.rows.parent, page)
    again = page.read_text(encoding="utf-8").removeprefix(text.rstrip("\n"))
    assert "1 of these runs, made once more" in again
    assert "1 of 1 within the committed 95 % intervals" in again
    assert "in 1 runs every problem has as many right answers as before" in again
    assert again.endswith("- another\n")


def test_the_rate_with_the_best_validation_score_is_chosen(tmp_path: Path) -> None:
    for rate, num_correct in ((1e-3, [2, 4]), (3e-3, [4, 4]), (3e-4, [4, 4])):
        cell = {
            "section": "learning_rate",
            "teaching": "opd",
            "student": "gap",
            "teacher": "tiny-teacher",
            "variant": "trd",
            "learning_rate": rate,
        }
        append_row(tmp_path / "rows.jsonl", {"cell": cell, "after": {"k": 4, "num_correct": num_correct}})
    rates = sections.choose_rates(read_rows(tmp_path / "rows.jsonl"))
    assert rates == {("opd", "gap", "tiny-teacher", "trd"): 3e-4}
    sections.write_rates(tmp_path / "rates.json", rates)
    assert sections.read_rates(tmp_path / "rates.json") == rates


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


def make_row(variant: str, seed: int, curve: list[float], tokens: int, section: str = "rounds") -> Row:
    """Make a row of 100 problems; `curve` is the share that is always right after each round, 0 before."""
    scores = [{"k": 8, "num_correct": [8 * (p < 100 * share) for p in range(100)]} for share in curve]
    return {
        "id": f"{section}-{variant}-{seed}",
        "cell": {"section": section, "teaching": "opd", "student": "gap", "variant": variant, "seed": seed},
        "before": {"k": 8, "num_correct": [0] * 100} if seed == 0 else None,
        "after": scores[-1],
        "curve": scores,
        "sampled_tokens": {"rollout": [tokens] * len(curve), "refined": [0] * len(curve)},
        "seconds_by_phase": {"rollout": tokens / 10, "training": tokens / 10, "evaluating": 1e6},
    }


def test_the_untrained_student_is_shown_whichever_variant_says_it() -> None:
    silent, telling = (make_row(name, 0, [0.5], 1, "controls") for name in ("ce_refined", "kd_teacher_samples"))
    table = score_table(group([silent | {"before": None}, telling]), "controls", ("ce_refined", "kd_teacher_samples"))
    assert [line.split(" | ")[1] for line in table[2:]] == ["before", "ce_refined", "kd_teacher_samples"]
    assert table[2].startswith("| OPD, gap | before | | 0.0 [0.0, 0.0]")


def test_scores_are_compared_at_equal_tokens_and_equal_seconds() -> None:
    rows = [make_row("reverse_kl", seed, [0.2, 0.4, 0.5, 0.6], 100) for seed in (0, 1)]
    rows += [make_row("trd", seed, [0.5, 0.6, 0.6, 0.6], 200) for seed in (0, 1)]
    timed = [make_row(name, 0, [0.5], tokens, "timing") for name, tokens in (("reverse_kl", 100), ("trd", 300))]
    lines = catch_up_table(group([*rows, *timed]))
    trd = [cell.strip() for cell in lines[-1].split("|")[1:-1]]
    assert trd[:8] == ["OPD, gap", "trd", "0.0", "50.0", "60.0", "60.0", "60.0", "200"]
    # 200 tokens: trd's first round against the baseline's second; 400: the second against the fourth. In seconds a
    # round of trd is three of the baseline's: 50 against 50, and at the end of its fourth 53.3 against 60.
    assert [float(cell.split(" ")[0]) for cell in trd[8:]] == pytest.approx([10.0, 0.0, 0.0, -6.7])


def test_a_run_made_again_takes_the_place_of_the_committed_one_and_is_held_against_it(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert merge(path, [make_row("trd", seed, [0.5], 1) for seed in (0, 1)]) == []
    again = [make_row("trd", seed, [share], 1) for seed, share in ((0, 0.5), (1, 0.52))]
    assert merge(path, again)[-1] == "1 of 1 within the committed 95 % intervals"
    assert read_rows(path) == again
    assert "OUTSIDE" in merge(path, [make_row("trd", 0, [0.9], 1)])[0]
    assert [row["after"] for row in read_rows(path)] == [make_row("trd", 0, [0.9], 1)["after"], again[1]["after"]]


def test_a_claim_is_reproduced_where_every_setting_agrees() -> None:
    assert Claim.by_setting("", [("a", True), ("b", True)]).verdict == "reproduced"
    assert Claim.by_setting("", [("a", True), ("b", False)]).verdict == "reproduced in part"
    assert Claim.by_setting("", [("a", False)]).verdict == "not reproduced"
    assert Claim.by_setting("", []).verdict == NOT_RUN
