"""Where a worked solution first goes wrong: by a reference, and by its own arithmetic."""

from __future__ import annotations

import random

import pytest

from testbed import task as testbed
from trd_engine.tasks.math.equalities import check_equalities
from trd_engine.tasks.protocol import StepwiseTask
from trd_engine.tasks.registry import load_task
from trd_engine.tasks.steps import check_by_reference
from trd_engine.types import Problem

REFERENCE = "85-3|82|\\boxed{82}"


@pytest.mark.parametrize(
    ("text", "first_wrong"),
    [
        ("85-3;82;\\boxed{82}", None),
        ("85-3\n82\n\\boxed{82}\n", None),
        ("85 - 3; 82; \\boxed{82}", None),
        ("84-3;81;\\boxed{81}", 0),
        ("85-3;81;\\boxed{81}", 1),
        ("85-3;82;\\boxed{28}", 2),
        ("84-3;wait;85-3;82", 0),
        ("85-3;wait;85-3;83;82", 3),
        ("85-3;82;wait;82;\\boxed{82}", None),
        ("85-3;82;85-3", 2),
        ("85-3;8", None),
        ("85-3;9", 1),
        ("", None),
        ("85-3;82;\\boxed{82};and so on", None),
    ],
)
def test_the_first_step_that_leaves_the_reference_is_wrong(text: str, first_wrong: int | None) -> None:
    check = check_by_reference(REFERENCE, text)
    assert check is not None
    assert check.first_wrong == first_wrong


def test_steps_start_where_their_text_does() -> None:
    check = check_by_reference(REFERENCE, "85-3;\n  82;;x")
    assert check is not None
    assert check.starts == (0, 8, 12)


def test_a_reference_of_one_step_tells_nothing() -> None:
    assert check_by_reference("\\boxed{82}", "85-3;82") is None


def test_it_agrees_with_the_testbeds_own_judge() -> None:
    """Which computes each line from the one before it, and knows no reference."""
    rng = random.Random(3)
    errors = testbed.ErrorModel(gap_rate=0.4, slip_rate=0.3, wait_rate=0.5)
    num_wrong = 0
    for _ in range(400):
        problem = testbed.draw_problem(rng, "train")
        lines = list(testbed.attempt(problem, errors, rng).lines)
        check = check_by_reference(testbed.reference(problem.text), ";".join(lines))
        assert check is not None
        assert check.first_wrong == testbed.first_wrong_line(problem.text, lines)
        num_wrong += check.first_wrong is not None
    assert 100 < num_wrong < 390


@pytest.mark.parametrize(
    "text",
    [
        "12 + 3 \\times 4 = 24",
        "$12 + 3 \\cdot 4 = 24$",
        "so (12 + 3) × 4 = 60 apples.",
        "1,200 + 34 = 1,234",
        "x = 3 + 4 = 7",
        "10 / 3 = 3.33, and 2/3 = 0.667",
        "7 / 2 = 3 remainder 1",
        "2 * 3 = 6 = 12 / 2",
        "1. 3 + 4 = 7",
        "-3 + 4 = 1 = 3 - 2",
    ],
)
def test_right_arithmetic_is_found_and_right(text: str) -> None:
    check = check_equalities(text)
    assert check is not None
    assert check.first_wrong is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("12 + 3 \\times 4 = 60", 0),
        ("we get 12 + 3 = 15, then 15 - 7 = 9", 25),
        ("x = 3 + 4 = 8", 4),
        ("0.5 + 0.2 = 0.8", 0),
        ("8 / 2 = 5", 0),
        ("10 / 3 = 3.43", 0),
        ("1,200 + 34 = 1,334", 0),
        ("2 + 2 = 4 = 1 + 4", 8 - 0),
    ],
)
def test_wrong_arithmetic_is_found_where_it_stands(text: str, place: int) -> None:
    check = check_equalities(text)
    assert check is not None
    assert check.first_wrong is not None
    assert check.starts[check.first_wrong] == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no numbers at all",
        "x = 5",
        "2x + 3 = 7",
        "x - 3 = 4",
        "x^2 + 3 = 7",
        "2 + 1 = 3x",
        "3 + 5 = 1 (mod 7)",
        "3 + 5 = 1 \\pmod{7}",
        "10 % 3 = 1",
        "- 3 + 4 = 7",
        "* 3 + 4 = 12",
        "\\frac{6}{2} = 3",
        "f(3) + 1 = 12",
        "1 / 0 = 7",
        "2(3 + 4) = 12",
        "3 + = 4",
        "((((3 + 4 = 9",
        "1 + 2 = 3 = ",
        "1" * 40 + " + 1 = 2",
        "1+" * 100 + "1 = 2",
    ],
)
def test_what_can_be_misread_is_passed_over(text: str) -> None:
    check = check_equalities(text)
    assert check is None or check.first_wrong is None


def test_a_long_text_takes_no_long_time() -> None:
    assert check_equalities("1 + 1 = 2, " * 20_000) is not None
    assert check_equalities("(" * 100_000 + "=" * 100_000) is None


def test_only_tasks_that_can_tell_say_that_they_can() -> None:
    problem = Problem("p", "?", "7")
    math = load_task("math")
    assert isinstance(math, StepwiseTask)
    check = math.check_steps(problem, "3 + 4 = 8")
    assert check is not None
    assert check.first_wrong == 0
    assert not isinstance(load_task("exact"), StepwiseTask)
