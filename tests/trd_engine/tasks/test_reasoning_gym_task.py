"""Task reasoning_gym: the generators' own scorers, on texts that try to be programs too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trd_engine.rows import load_rows
from trd_engine.config import DataSource
from trd_engine.data.problems import load_problems
from trd_engine.runtime.errors import DataError, SpecError
from trd_engine.tasks.reasoning_gym import given_answer
from trd_engine.tasks.registry import load_task
from trd_engine.types import Problem


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> no <answer> 2\n3 </answer>", "2\n3"),
        (r"so \boxed{4}", "4"),
        ("  plain ", "plain"),
        ("<answer>cut off", "<answer>cut off"),
    ],
)
def test_answer_is_taken_from_tags_box_or_text(text: str, answer: str) -> None:
    assert given_answer(text) == answer


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trd_engine.tasks.registry.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"task = reasoning_gym: its library.*trd-service\[gym\]"):
        load_task("reasoning_gym")


def test_equivalent_answers_count_and_partial_credit_does_not() -> None:
    [countdown] = load_problems(DataSource(generator="countdown", size=1, seed=3), "reasoning_gym").problems
    task = load_task("reasoning_gym")
    expression = countdown.extra["entry"]["metadata"]["expression"]
    texts = [f"<answer>{expression}</answer>", f"<answer>0 + ({expression})</answer>", "<answer>1 + 1</answer>"]
    verdicts = task.verify_many([(countdown, text) for text in texts])
    assert verdicts[0].correct
    assert [verdict.correct for verdict in verdicts[1:]] == [False, False]
    assert verdicts[2].detail.startswith("score 0")


def test_expression_that_is_a_program_reaches_nothing(tmp_path: Path) -> None:
    """countdown's scorer evaluates the answer with Python's `eval`, by way of sympy."""
    [countdown] = load_problems(DataSource(generator="countdown", size=1, seed=3), "reasoning_gym").problems
    target, secret = tmp_path / "written", tmp_path / "secret"
    secret.write_text("canary")
    task = load_task("reasoning_gym")
    for program in (
        f"__import__('pathlib').Path({str(target)!r}).touch()",
        f"__import__('os').system('touch {target}')",
        f"__import__('os').remove({str(secret)!r})",
    ):
        assert not task.verify(countdown, f"<answer>{program}</answer>").correct
    assert not target.exists()
    assert secret.read_text() == "canary"
    assert task.verify(countdown, countdown.extra["entry"]["metadata"]["expression"]).correct


def test_rows_from_a_file_are_scored_by_the_generator_they_name(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "12", "metadata": {"source_dataset": "basic_arithmetic"}}
    kept_as_text = {**row, "metadata": json.dumps(row["metadata"])}
    for problem in load_rows(tmp_path, row, kept_as_text, task="reasoning_gym"):
        assert load_task("reasoning_gym").verify(problem, "<answer>12</answer>").correct
        assert not load_task("reasoning_gym").verify(problem, "<answer>13</answer>").correct


def test_rows_without_a_generator_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: metadata = null: must name the row's generator as source_dataset"):
        load_rows(tmp_path, {"question": "q", "answer": "12"}, task="reasoning_gym")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"metadata": {"source_dataset": "basic_arithmetics"}},
            "row 2: metadata: source_dataset = basic_arithmetics scores no answer: reasoning-gym "
            "has no such generator; the closest are basic_arithmetic, .* \\(as in 1 more\\); for answers that are "
            "compared as text, use task exact",
        ),
        ({"metadata": {"source_dataset": "composite"}}, "row 2: .* = composite scores no answer: .*Must specify"),
        ({"answer": None}, "row 2: answer: this field is required; the scorer of basic_arithmetic compares with it"),
    ],
)
def test_rows_that_no_scorer_could_find_right_are_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    row = {"question": "q", "answer": "12", "metadata": {"source_dataset": "basic_arithmetic"}}
    with pytest.raises(DataError, match=words):
        load_rows(tmp_path, row, {**row, **changes}, {**row, **changes}, task="reasoning_gym")


def test_an_answer_may_have_any_of_its_names_and_be_missing_where_only_the_scorer_can_tell(tmp_path: Path) -> None:
    named = {"question": "q", "target": "12", "metadata": {"source_dataset": "basic_arithmetic"}}
    unanswered = {"question": "q", "metadata": {"source_dataset": "graph_color"}}
    problems = load_rows(tmp_path, named, unanswered, task="reasoning_gym")
    assert load_task("reasoning_gym").verify(problems[0], "<answer>12</answer>").correct
    assert problems[1].answer == ""


def test_unknown_generator_is_a_verdict() -> None:
    entry = {"question": "q", "answer": "1", "metadata": {"source_dataset": "nothing"}}
    verdict = load_task("reasoning_gym").verify(Problem("1", "q", "1", None, {"entry": entry}), "1")
    assert verdict.detail.startswith("error: ValueError")
    assert verdict.failure == "error"
