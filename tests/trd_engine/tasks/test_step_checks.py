"""Where a worked solution first goes wrong: by a reference, and by its own arithmetic."""

from __future__ import annotations

import random

import pytest

from testbed import task as testbed
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


def test_only_tasks_that_can_tell_say_that_they_can() -> None:
    problem = Problem("p", "?", "7")
    math = load_task("math")
    assert isinstance(math, StepwiseTask)
    check = math.check_steps(problem, "3 + 4 = 8")
    assert check is not None
    assert check.first_wrong == 0
    assert not isinstance(load_task("exact"), StepwiseTask)
