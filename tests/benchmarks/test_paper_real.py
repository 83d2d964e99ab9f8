"""The paper on a real model: candidates that can be answered, legal specs, the endpoint of references, the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.paper.real import choice, grid, runner, tasks
from benchmarks.paper.real.grid import RealCell
from benchmarks.paper.real.reference_server import serving_references
from benchmarks.paper.real.runner import RealPlaces
from benchmarks.paper.real.tasks import CANDIDATES
from benchmarks.paper.real_report import MISSING, real_section
from benchmarks.paper.rows import read_rows
from trd_engine.config import DataSource, parse_config
from trd_engine.data import load_problems
from trd_engine.tasks import load_task

TASK = "chain_sum-3x1"
RATES = dict.fromkeys(((TASK, variant) for variant in grid.VARIANTS), 1e-3)
MODEL = Path(__file__).parents[2] / "models" / grid.STUDENT


@pytest.mark.parametrize("name", CANDIDATES)
def test_reference_solutions_are_right_and_no_problem_is_in_two_splits(name: str, tmp_path: Path) -> None:
    tasks.write_splits(CANDIDATES[name], tmp_path)
    sources = {split: DataSource(path=str(tmp_path / f"{split}.jsonl")) for split in tasks.SIZES}
    splits = {split: load_problems(source, "reasoning_gym").problems for split, source in sources.items()}
    assert {split: len(problems) for split, problems in splits.items()} == tasks.SIZES
    problems = [problem for split in splits.values() for problem in split]
    assert len({problem.problem for problem in problems}) == len(problems)
    verdicts = load_task("reasoning_gym").verify_many([(problem, problem.solution or "") for problem in problems])
    assert [verdict.detail for verdict in verdicts if not verdict.correct] == []


def test_the_warm_up_asks_in_every_form_and_is_answered_with_the_reference(tmp_path: Path) -> None:
    tasks.write_splits(CANDIDATES[TASK], tmp_path)
    asked = load_problems(DataSource(path=str(tmp_path / f"{tasks.ALL_FORMS}.jsonl")), "reasoning_gym").problems
    alone = load_problems(DataSource(path=str(tmp_path / "warm_up.jsonl")), "reasoning_gym").problems
    assert len(asked) == len(tasks.FORMS) * len(alone) == len({problem.problem for problem in asked})
    assert [problem.problem for problem in asked[:: len(tasks.FORMS)]] == [problem.problem for problem in alone]
    for number, problem in enumerate(alone):
        forms = asked[number * len(tasks.FORMS) :][: len(tasks.FORMS)]
        assert {form.solution for form in forms} == {problem.solution}
        assert all((problem.solution or "") in form.problem for form in forms[1:])
    verdicts = load_task("reasoning_gym").verify_many(
        [(problem, _attempt_in(problem.problem)) for problem in asked[2::3]]
    )
    assert 0.4 < sum(verdict.correct for verdict in verdicts) / len(verdicts) < 0.7


def _attempt_in(question: str) -> str:
    return question.split("A first attempt:\n")[1].split("\n\nThe right solution")[0]


def test_problems_do_not_hang_on_the_order_of_sets(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from benchmarks.paper.real import tasks\n"
        "for c in tasks.CANDIDATES.values(): tasks.write_splits(c, pathlib.Path(sys.argv[1]) / c.name)"
    )
    texts = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / seed)], env=environment, check=True)
        texts.append({str(p.relative_to(tmp_path / seed)): p.read_text() for p in (tmp_path / seed).glob("*/*")})
    assert len(texts[0]) == len(CANDIDATES) * (len(tasks.SIZES) + 1)
    assert texts[0] == texts[1]


def test_every_cell_is_a_run_of_its_own_and_a_legal_spec(tmp_path: Path) -> None:
    cells = [
        grid.warm_up_cell(TASK),
        grid.student_cell(TASK),
        *grid.learning_rate_cells([TASK]),
        *grid.main_cells([TASK], RATES),
    ]
    assert len({cell.id for cell in cells}) == len(cells) == 2 + 4 * 2 + 4 * 3
    for cell in cells:
        document = grid.engine_spec(cell, data=tmp_path, student=MODEL, reference_url="http://127.0.0.1:1/v1")
        config = parse_config(document)
        assert config.is_privileged == (cell.variant != "ce_reference")
        assert config.refines == (cell.variant in ("ce_reference", "trd"))


def test_the_endpoint_knows_the_references_and_nothing_else() -> None:
    with serving_references({"1 + 1 =": "<answer>2</answer>"}) as url:
        known, unknown = (
            httpx.post(f"{url}/chat/completions", json={"messages": [{"role": "user", "content": text}]})
            for text in ("1 + 1 =", "1 + 2 =")
        )
    assert known.json()["choices"][0]["message"]["content"] == "<answer>2</answer>"
    assert unknown.status_code == 404


def _row(cell: RealCell, correct: list[int], before: list[int] | None = None) -> dict[str, Any]:
    """What the report reads of a row."""
    k = grid.K[cell.split]
    return {
        "id": cell.id,
        "cell": vars(cell),
        "before": None if before is None else {"k": k, "num_correct": before},
        "after": {"k": k, "num_correct": correct},
        "samples": ["11", "5 + 6 = 11\n<answer>11</answer>"],
        "rounds": [{"rollout_accuracy": 0.25, "refined_accuracy": 0.5}],
        "sampled_tokens": {"rollout": [100], "refined": [80]},
        "seconds_by_phase": {"rollout": 1.0, "training": 2.0},
    }


def test_the_candidate_nearest_the_middle_is_chosen_one_of_a_generator() -> None:
    scores = {
        "chain_sum-3x1": [1, 0, 0, 0],
        "chain_sum-2x2": [2, 1, 0, 0],
        "letter_counting-2-3": [0, 0, 0, 0],
        "spell_backward-3-4": [2, 2, 2, 0],
        "leg_counting-2": [1, 1, 0, 0],
    }
    rows = [_row(grid.warm_up_cell(task), correct, [0, 0, 0, 0]) for task, correct in scores.items()]
    assert choice.choose(rows, 3) == ["chain_sum-2x2", "leg_counting-2"]
    page = "\n".join(choice.page(rows, ["chain_sum-2x2"], "a model"))
    assert "| **chain_sum-2x2** | min_terms 2" in page
    assert "| 0 % | 38 % | `11` | `5 + 6 = 11⏎<answer>11</answer>` |" in page


def test_the_rate_with_the_best_validation_score_is_taken_and_the_smaller_of_two_alike() -> None:
    scores = {3e-4: [1, 1], 1e-3: [2, 1]}
    rows = [
        _row(cell, scores[cell.learning_rate] if cell.variant == "trd" else [1, 1])
        for cell in grid.learning_rate_cells([TASK])
    ]
    rates = grid.choose_rates(rows)
    assert rates[TASK, "trd"] == 1e-3
    assert rates[TASK, "forward_kl"] == 3e-4


def test_the_section_says_what_the_rows_say_and_what_is_missing() -> None:
    assert MISSING in real_section([])
    cells = grid.main_cells([TASK], RATES)
    scores = {
        "trd": [4, 3] * 20,
        "ce_reference": [2, 1] * 20,
        "forward_kl": [1, 1] * 20,
        "reverse_kl_topk": [1, 0] * 20,
    }
    rows = [_row(c, scores[c.variant], [1, 0] * 20 if c.variant == "forward_kl" else None) for c in cells]
    text = "\n".join(real_section(rows))
    assert "TRD **wins** against the best baseline, `ce_reference`: 50.0 [50.0, 50.0] points of avg@4 over 3" in text
    assert "| before | | | 12.5 " in text
    assert "Only" not in text
    half = "\n".join(real_section([row for row in rows if row["cell"]["seed"] == 0]))
    assert "Only 1 of 3 seeds" in half


@pytest.mark.slow
def test_a_warm_up_makes_the_student_that_the_grid_begins_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SIZES", {"heldout": 4, "validation": 4, "search": 4, "warm_up": 8, "train": 4})
    places = RealPlaces(MODEL, tmp_path, tmp_path / "rows.jsonl")
    tasks.write_splits(CANDIDATES[TASK], places.data / TASK)
    warm_up = runner.run_cell(grid.student_cell(TASK), places, "here")
    assert warm_up["num_steps"] == 3
    assert len(warm_up["before"]["num_correct"]) == len(warm_up["after"]["num_correct"]) == 4
    assert all(warm_up["samples"])
    assert (places.student(TASK) / "model.safetensors").is_file()
    # The references are the targets: as many tokens as the tokenizer makes of them, and each is right.
    assert warm_up["rounds"][0]["refined_accuracy"] == 1.0
    row = runner.run_cell(grid.real_cell("real", TASK, "trd", 1e-3, 0, batch_size=4), places, "here")
    assert row["num_steps"] == 1
    assert row["after"]["k"] == 4
    assert row["sampled_tokens"]["refined"][0] > 0
    assert list((tmp_path / "runs").iterdir()) == []
    assert read_rows(places.rows) == []
    json.dumps(row)
