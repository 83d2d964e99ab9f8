"""The paper on a real model: candidates that can be answered, legal specs, the endpoints, the report."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.paper.real import choice, grid, runner, tasks
from benchmarks.paper.real.grid import RealCell
from benchmarks.paper.real.reference_server import serving_references
from benchmarks.paper.real.runner import RealPlaces
from benchmarks.paper.real.tasks import CANDIDATES
from benchmarks.paper.real_report import MISSING, SERVED_MISSING, real_section
from benchmarks.paper.rows import read_rows
from trd_data.templates import fill
from trd_engine.config import DataSource, parse_config
from trd_engine.data.problems import load_problems
from trd_engine.tasks.registry import load_task
from trd_engine.types import Problem

TASK = "chain_sum-3x1"
RATES = dict.fromkeys(((TASK, variant) for variant in grid.VARIANTS), 1e-3)
MODEL = Path(__file__).parents[2] / "models" / grid.STUDENT


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all candidates' problems, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("candidates")
    for name, candidate in CANDIDATES.items():
        tasks.write_splits(candidate, folder / name)
    return folder


@pytest.fixture(scope="module")
def problems(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Problem]]]:
    """The problems by candidate and file."""
    texts = {
        (path.parent.name, path.stem): path.read_text(encoding="utf-8") for path in sorted(drawn.glob("*/*.jsonl"))
    }
    together = tmp_path_factory.mktemp("together") / "all.jsonl"
    together.write_text("".join(texts.values()), encoding="utf-8")
    loaded = iter(load_problems(DataSource(path=str(together)), "reasoning_gym").problems)
    found: dict[str, dict[str, list[Problem]]] = {name: {} for name in CANDIDATES}
    for (name, file), text in texts.items():
        found[name][file] = list(itertools.islice(loaded, len(text.splitlines())))
    assert next(loaded, None) is None
    return found


def test_reference_solutions_are_right_and_no_problem_is_in_two_splits(
    problems: dict[str, dict[str, list[Problem]]],
) -> None:
    judged: list[Problem] = []
    for files in problems.values():
        splits = {split: files[split] for split in tasks.SIZES}
        assert {split: len(those) for split, those in splits.items()} == tasks.SIZES
        everything = [problem for split in splits.values() for problem in split]
        assert len({problem.problem for problem in everything}) == len(everything)
        judged += everything[::64]  # each verdict is a process
    verdicts = load_task("reasoning_gym").verify_many([(problem, problem.solution or "") for problem in judged])
    assert [verdict.detail for verdict in verdicts if not verdict.correct] == []


def test_the_warm_up_asks_in_every_form_and_is_answered_with_the_reference(
    problems: dict[str, dict[str, list[Problem]]],
) -> None:
    asked, alone = problems[TASK][tasks.ALL_FORMS], problems[TASK]["warm_up"]
    assert len(asked) == len(tasks.FORMS) * len(alone) == len({problem.problem for problem in asked})
    assert [problem.problem for problem in asked[:: len(tasks.FORMS)]] == [problem.problem for problem in alone]
    for number, problem in enumerate(alone):
        forms = asked[number * len(tasks.FORMS) :][: len(tasks.FORMS)]
        assert {form.solution for form in forms} == {problem.solution}
        assert all((problem.solution or "") in form.problem for form in forms[1:])
    verdicts = load_task("reasoning_gym").verify_many(
        [(problem, _attempt_in(problem.problem)) for problem in asked[2::9]]
    )
    assert 0.4 < sum(verdict.correct for verdict in verdicts) / len(verdicts) < 0.7


def _attempt_in(question: str) -> str:
    return re.split("\n\n(?:The right solution|Now write)", question.split("A first attempt:\n")[1])[0]


def test_the_served_teacher_is_trained_on_its_own_prompts(
    problems: dict[str, dict[str, list[Problem]]], tmp_path: Path
) -> None:
    asked, alone = problems[TASK][tasks.TEACHER_ALL_FORMS], problems[TASK]["teacher"]
    assert [problem.problem for problem in asked[::2]] == [problem.problem for problem in alone]
    prompts = grid.engine_spec(
        grid.real_cell("real", TASK, "trd_served", 1e-3, 0), data=tmp_path, student=MODEL, endpoint_url="http://x/v1"
    )["prompts"]
    for problem, refined in zip(alone, asked[1::2], strict=True):
        attempt = _attempt_in(refined.problem)
        assert refined.problem == fill(prompts["refine"], problem=problem.problem, attempt=attempt)
        assert refined.solution == problem.solution
    attempts = [(problem, _attempt_in(problem.problem)) for problem in asked[1::18]]
    verdicts = load_task("reasoning_gym").verify_many(attempts)
    assert 0.4 < sum(verdict.correct for verdict in verdicts) / len(verdicts) < 0.7
    assert all(
        problem.solution not in problem.problem
        for (problem, _), v in zip(attempts, verdicts, strict=True)
        if not v.correct
    )


def test_the_last_split_leaves_the_others_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    now = tasks.draw(CANDIDATES[TASK])
    monkeypatch.setattr(tasks, "SIZES", {split: size for split, size in tasks.SIZES.items() if split != "teacher"})
    before = tasks.draw(CANDIDATES[TASK])
    assert now == before | {"teacher": now["teacher"]}
    assert len(now["teacher"]) == 384


def test_problems_do_not_hang_on_the_order_of_sets(drawn: Path, tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from benchmarks.paper.real import tasks\n"
        "for c in tasks.CANDIDATES.values(): tasks.write_splits(c, pathlib.Path(sys.argv[1]) / c.name)"
    )
    other_seed = str(int(os.environ.get("PYTHONHASHSEED", "random") == "0"))
    environment = os.environ | {"PYTHONHASHSEED": other_seed, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True)
    texts = [{str(p.relative_to(folder)): p.read_text() for p in folder.glob("*/*")} for folder in (drawn, tmp_path)]
    assert len(texts[0]) == len(CANDIDATES) * (len(tasks.SIZES) + 2)
    assert texts[0] == texts[1]


def test_every_cell_is_a_run_of_its_own_and_a_legal_spec(tmp_path: Path) -> None:
    cells = [
        grid.warm_up_cell(TASK),
        grid.student_cell(TASK),
        grid.teacher_cell(TASK),
        *grid.learning_rate_cells([TASK]),
        *grid.main_cells([TASK], RATES),
    ]
    assert len({cell.id for cell in cells}) == len(cells) == 3 + 5 * 3 + 5 * 3
    for cell in cells:
        document = grid.engine_spec(cell, data=tmp_path, student=MODEL, endpoint_url="http://127.0.0.1:1/v1")
        config = parse_config(document)
        assert config.is_privileged == (cell.variant not in grid.ENDPOINTS)
        assert config.refines == (cell.variant in ("ce_reference", "trd", "trd_served"))
        assert (config.loss.divergence == "cross_entropy") == (cell.variant in grid.ENDPOINTS)


def test_rows_of_before_the_served_teacher_are_found_again_and_its_own_come_last() -> None:
    rate_cells, main_cells = grid.learning_rate_cells([TASK, "chain_sum-2x2"]), grid.main_cells([TASK], RATES)
    for cells in (rate_cells, main_cells):
        assert [cell.needs_server for cell in cells] == sorted(cell.variant == "trd_served" for cell in cells)
    committed = "real_learning_rate-opsd-smollm2-135m-instruct"
    assert [cell.id for cell in rate_cells[:12:3]] == [
        f"{committed}-forward_kl-s100-c01138bb28",
        f"{committed}-reverse_kl_topk-s100-8dd95f4c87",
        f"{committed}-ce_reference-s100-85158ea3f7",
        f"{committed}-trd-s100-75993ed5e6",
    ]
    assert grid.student_cell(TASK).id.endswith("-63a94ec50c")
    assert {cell.variant for cell in grid.main_cells([TASK], RATES, ["trd_served"])} == {"trd_served"}


def test_the_endpoint_knows_the_references_and_nothing_else() -> None:
    with serving_references({"1 + 1 =": "<answer>2</answer>"}) as url:
        known, unknown = (
            httpx.post(f"{url}/chat/completions", json={"messages": [{"role": "user", "content": text}]})
            for text in ("1 + 1 =", "1 + 2 =")
        )
    assert known.json()["choices"][0]["message"]["content"] == "<answer>2</answer>"
    assert unknown.status_code == 404


def _row(cell: RealCell, correct: list[int], before: list[int] | None = None) -> dict[str, Any]:
    """Return what the report reads of a row."""
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
        "machine": "2026-01-02; Some processor, 2 cores; Python 3.11.",
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
    scores = {3e-4: [1, 1], 1e-3: [2, 1], 3e-3: [1, 2]}
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
        "trd_served": [3, 4] * 20,
    }
    rows = [_row(c, scores[c.variant], [1, 0] * 20 if c.variant == "forward_kl" else None) for c in cells]
    text = "\n".join(real_section(rows))
    assert "TRD **wins** against the best baseline, `ce_reference`: 50.0 [50.0, 50.0] points of avg@4 over 3" in text
    assert "| before | | | 12.5 " in text
    assert "Only" not in text
    assert "| trd_served | 0.001 | 3 | 87.5 [" in text
    assert f"With a served teacher (`trd_served`): {SERVED_MISSING}" in text
    text = " ".join(real_section([*rows, _row(grid.teacher_cell(TASK), [4, 2] * 20, [0, 1] * 20)]))
    assert "its avg@4 is 75.0 [" in text
    assert "of the student's y_o 25.0 % are right, of its y_r 50.0 %" in text
    assert "`trd_served` **wins** against `ce_reference` (50.0 [" in text
    assert "**ties** against `trd` (0.0 [" in text
    assert "another machine" not in text
    for share, words in ((0.25, "of its y_o as many are right"), (0.5, "of its y_o not as many are right")):
        elsewhere = [
            row
            | {
                "machine": "2026-01-03; Another, 2 cores",
                "rounds": [{"rollout_accuracy": share, "refined_accuracy": 0.5}],
            }
            for row in rows
            if row["cell"]["variant"] == "trd_served"
        ]
        others = [row for row in rows if row["cell"]["variant"] != "trd_served"]
        text = " ".join(real_section([*others, *elsewhere, _row(grid.teacher_cell(TASK), [4, 2] * 20, [0, 1] * 20)]))
        assert "Its rows are of another machine" in text
        assert words in text
    half = "\n".join(real_section([row for row in rows if row["cell"]["seed"] == 0]))
    assert "Only 1 of 3 seeds" in half


SMALL_SIZES = dict.fromkeys(tasks.SIZES, 2)
MAX_NEW_TOKENS = 32
"""Enough for every reference of the task."""


@pytest.mark.slow
def test_a_warm_up_makes_the_student_that_the_grid_begins_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SIZES", SMALL_SIZES)
    monkeypatch.setattr(grid, "K", {"heldout": 2, "validation": 1, "search": 1})
    monkeypatch.setattr(grid, "WARM_UP_BATCH_SIZE", 2)
    monkeypatch.setattr(grid, "MAX_NEW_TOKENS", MAX_NEW_TOKENS)
    places = RealPlaces(MODEL, tmp_path, tmp_path / "rows.jsonl")
    tasks.write_splits(CANDIDATES[TASK], places.data / TASK)
    warm_up = runner.run_cell(grid.student_cell(TASK), places, "here")
    assert warm_up["num_steps"] == 3
    assert len(warm_up["before"]["num_correct"]) == len(warm_up["after"]["num_correct"]) == 2
    assert all(warm_up["samples"])
    assert (places.student(TASK) / "model.safetensors").is_file()
    # The references are the targets: as many tokens as the tokenizer makes of them, and each is right.
    assert warm_up["rounds"][0]["refined_accuracy"] == 1.0
    row = runner.run_cell(grid.real_cell("real", TASK, "trd", 1e-3, 0, batch_size=2), places, "here")
    assert row["num_steps"] == 1
    assert row["after"]["k"] == 2
    assert row["sampled_tokens"]["refined"][0] > 0
    assert list((tmp_path / "runs").iterdir()) == []
    assert read_rows(places.rows) == []
    json.dumps(row)


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_served_model_refines_and_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    monkeypatch.setattr(tasks, "SIZES", SMALL_SIZES)
    monkeypatch.setattr(grid, "K", dict.fromkeys(grid.K, 1))
    monkeypatch.setattr(grid, "MAX_NEW_TOKENS", MAX_NEW_TOKENS)
    places = RealPlaces(MODEL, tmp_path, tmp_path / "rows.jsonl")
    tasks.write_splits(CANDIDATES[TASK], places.data / TASK)
    for folder in (places.student(TASK), places.teacher(TASK)):
        folder.parent.mkdir()
        folder.symlink_to(MODEL)
    asked_at: list[str] = []
    serving_model = runner.serving_model

    @contextmanager
    def watched(*args: Any, **kwargs: Any) -> Iterator[str]:
        with serving_model(*args, **kwargs) as url:
            asked_at.append(url)
            yield url

    monkeypatch.setattr(runner, "serving_model", watched)
    row = runner.run_cell(grid.real_cell("real", TASK, "trd_served", 1e-3, 0, batch_size=2), places, "here")
    assert row["num_steps"] == 1
    assert row["sampled_tokens"]["refined"][0] > 0
    assert row["rounds"][0]["refined_accuracy"] < 1.0  # the model as it comes, and not the references
    assert row["first_step"]["loss"] > 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(asked_at[0])
