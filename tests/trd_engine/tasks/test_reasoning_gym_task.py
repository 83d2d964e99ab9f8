"""Task reasoning_gym: the generators' own scorers, on texts that try to be programs too."""

from __future__ import annotations

from pathlib import Path

import pytest

from trd_engine.config import DataSource
from trd_engine.data import load_problems
from trd_engine.errors import DataError
from trd_engine.tasks import load_task
from trd_engine.tasks.reasoning_gym import given_answer
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


def test_rows_from_a_file_are_scored_by_the_generator_they_name() -> None:
    row = Problem("1", "q", "12", extra={"metadata": {"source_dataset": "basic_arithmetic"}})
    assert load_task("reasoning_gym").verify(row, "<answer>12</answer>").correct
    with pytest.raises(DataError, match="needs 'metadata' with 'source_dataset'"):
        load_task("reasoning_gym").verify(Problem("1", "q", "12"), "12")
