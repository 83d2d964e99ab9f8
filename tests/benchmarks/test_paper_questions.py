"""The two open questions of the paper in small: their cells, the choice of sections, and their tables."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.paper import grid, sections
from benchmarks.paper.__main__ import _sections
from benchmarks.paper.grid import engine_spec
from benchmarks.paper.question_tables import loops_table, question_rate_table, support_table
from benchmarks.paper.rows import Row
from benchmarks.paper.sections import LOOPS, QUESTION_RATES, SECTIONS, SUPPORT, rate_cells, section_cells
from benchmarks.paper.summary import group
from benchmarks.paper.tables import MISSING
from tests.trd_engine.tiny_runs import MODELS
from trd_engine.config import parse_config

QUESTIONS = ("support", "loops")


def test_every_section_has_the_rates_that_its_cells_need_and_its_own_cells() -> None:
    rates = {sections.rate_key(cell): 1e-3 for cell in rate_cells(SECTIONS)}
    cells = [*rate_cells(SECTIONS), *(cell for name in SECTIONS for cell in section_cells(name, rates))]
    assert len({cell.id for cell in cells}) == len(cells)
    assert rate_cells(["main", "controls"]) == rate_cells(["main"]) == grid.learning_rate_cells()
    assert not set(rate_cells(QUESTIONS)) & set(grid.learning_rate_cells())


def test_the_questions_are_legal_specs_and_loops_have_room(tmp_path: Path) -> None:
    rates = {sections.rate_key(cell): 1e-3 for cell in rate_cells(QUESTIONS)}
    for cell in [cell for name in QUESTIONS for cell in section_cells(name, rates)]:
        spec = engine_spec(cell, data=tmp_path, models=MODELS)
        config = parse_config(spec)
        assert (MODELS / cell.teacher / "config.json").exists()
        is_long = cell.student == "loops"
        assert config.sampling.max_new_tokens == (320 if is_long else 160)
        assert spec["refine"]["max_prompt_tokens"] == (512 if is_long else 256)


def test_a_section_that_is_not_there_is_named() -> None:
    assert _sections("support,loops") == ["support", "loops"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"'loop'.*support"):
        _sections("main,loop")


def _row(section: str, student: str, variant: str, seed: int, num_correct: int, rate: float = 1e-3) -> Row:
    collected = {"rollout_accuracy": 0.2, "rollout_tokens_p50": 90.0, "refined_accuracy": 0.9}
    return {
        "cell": {
            "section": section,
            "teaching": "opd",
            "student": student,
            "variant": variant,
            "seed": seed,
            "learning_rate": rate,
        },
        "after": {"k": 8, "num_correct": [num_correct] * 10, "mean_tokens": 50.0},
        "rounds": [collected | ({"refined_tokens_p50": 45.0} if variant == "trd" else {})],
        "first_step": {"student_perplexity": 2.718282, "divergence_per_token": 0.5},
        "last_step": {"student_perplexity": 1.0, "divergence_per_token": 0.1},
        "sampled_tokens": {"rollout": [9000], "refined": [4500 if variant == "trd" else 0]},
        "seconds_by_phase": {"rollout": 8.0, "training": 6.0} | ({"refining": 5.0} if variant == "trd" else {}),
        "cpu_seconds": 30.0,
    }


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_support_compares_trd_with_each_variant_at_each_distance() -> None:
    rows = [
        _row(pairing.section, "gap", variant, seed, {"trd": 6, "kd_teacher_samples": 4}.get(variant, 2))
        for pairing in SUPPORT
        for variant in pairing.variants
        for seed in (0, 1)
    ]
    usual = _row("controls", "gap", "kd_teacher_samples", 0, 4)
    del usual["first_step"]
    rows.append(usual)
    header, _, *lines = [_cells(line) for line in support_table(group(rows))]
    table = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["teacher's own style"] for row in table] == ["0 %"] + ["50 %"] * 3 + ["100 %"] * 3
    assert (table[0]["nats/token before"], table[0]["trd less this"]) == ("", "")
    del table[0]
    control = table[2]
    assert control["variant"] == "kd_teacher_samples"
    assert control["trd less this"] == "25.0 [25.0, 25.0]"
    assert (control["nats/token before"], control["nats/token at the end"]) == ("1.000", "0.000")
    assert (table[0]["text right"], control["text right"]) == ("20.0", "90.0")
    assert support_table({}) == [MISSING]


def test_loops_are_reported_in_tokens_and_seconds_by_phase() -> None:
    rows = [_row("loops", "loops", variant, seed, 4) for variant in LOOPS[0].variants for seed in (0, 1)]
    timed = [_row("timing", "loops", variant, 0, 4) for variant in LOOPS[0].variants]
    header, _, *lines = [_cells(line) for line in loops_table(group([*rows, *timed]))]
    baseline, trd = (dict(zip(header, lines[i], strict=True)) for i in (1, 2))
    assert (baseline["y_r tokens"], trd["y_r tokens"], trd["y_o tokens"]) == ("", "4,500", "9,000")
    assert (baseline["these s"], trd["these s"], trd["refining s"]) == ("14.0", "19.0", "5.0")
    assert baseline["trd less this"] == "0.0 [0.0, 0.0]"
    assert loops_table({}) == [MISSING]


def test_the_chosen_rate_of_a_question_is_bold() -> None:
    pairing = SUPPORT[0]
    rows = [
        _row(pairing.rate_section, "gap", "trd", 100, count, rate)
        for rate, count in zip(QUESTION_RATES, (2, 6, 4), strict=True)
    ]
    assert question_rate_table(group(rows))[-1] == "| support-half | trd | 25.0 | **75.0** | 50.0 |"
