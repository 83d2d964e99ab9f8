"""The task against an independent evaluator: nothing here computes the way the task does."""

from __future__ import annotations

import random
import re

import pytest

from testbed import task
from testbed.task import ErrorModel, Expression

NUM_PROBLEMS = 300


def evaluate(text: str) -> int:
    """Compute an expression modulo 100, by Python's own arithmetic on nested parentheses."""
    code = str(int(text[:2]))
    for op, digit in re.findall(r"([-+*#])(\d)", text[2:]):
        code = f"(2*{code}+{digit})" if op == "#" else f"({code}{op}{digit})"
    return int(eval(code, {"__builtins__": {}})) % 100


def problems(num: int = NUM_PROBLEMS) -> list[str]:
    rng = random.Random(7)
    return [task.draw_problem(rng, "train").text for _ in range(num)]


def test_the_example_of_the_specification() -> None:
    assert task.reference("19*5*3-3#2-6").split("|")[1:] == [
        "85-3#2-6",
        "82#2-6",
        "64+2-6",
        "66-6",
        "60",
        "\\boxed{60}",
    ]
    assert task.solution(Expression.parse("47#8")).lines == ("94+8", "02", "\\boxed{02}")


def test_generation_is_deterministic() -> None:
    assert problems() == problems()
    errors = ErrorModel(gap_rate=0.5, slip_rate=0.3, noise_rate=0.1, wait_rate=0.5)
    attempts = [[task.attempt(Expression.parse(p), errors, random.Random(3)) for p in problems(50)] for _ in range(2)]
    assert attempts[0] == attempts[1]


def test_problems_have_the_specified_form() -> None:
    texts = problems()
    assert all(re.fullmatch(r"[1-9]\d([-+*#][2-9]){5}", text) for text in texts)
    share = sum(text.count("#") for text in texts) / (5 * len(texts))
    assert share == pytest.approx(task.HASH_SHARE, abs=0.04)


def test_every_line_of_a_solution_has_the_value_of_the_problem() -> None:
    for text in problems():
        *lines, box = task.reference(text).split(task.REFERENCE_STYLE)
        assert {evaluate(line) for line in lines} == {evaluate(text)}
        assert box == f"\\boxed{{{evaluate(text):02d}}}"
        assert task.answer(text) == f"{evaluate(text):02d}"
        assert task.first_wrong_line(text, [*lines, box]) is None


def test_the_first_wrong_line_is_where_the_value_changes() -> None:
    rng = random.Random(1)
    errors = ErrorModel(gap_rate=0.5, slip_rate=0.3, noise_rate=0.05)
    num_wrong = 0
    for text in problems():
        made = task.work(Expression.parse(text), errors, rng)
        values = [evaluate(line) for line in made.lines[:-1]]
        changed = [i for i, value in enumerate(values) if value != evaluate(text)]
        if changed:
            assert made.first_wrong is not None
            assert made.first_wrong <= changed[0]
        assert made.first_wrong == task.first_wrong_line(text, list(made.lines))
        num_wrong += made.first_wrong is not None
    assert num_wrong > NUM_PROBLEMS // 2


def test_a_gap_reads_hash_as_plus_and_nothing_else_goes_wrong() -> None:
    for text in problems():
        made = task.work(Expression.parse(text), ErrorModel(gap_rate=1.0), random.Random(0))
        as_plus = text.replace("#", "+")
        assert made.lines[-1] == f"\\boxed{{{evaluate(as_plus):02d}}}"


@pytest.mark.parametrize(
    ("value", "op", "digit", "slipped"),
    [
        (47, "+", 8, 45),
        (42, "-", 8, 44),
        (47, "*", 3, 21),
        (47, "*", 2, 84),
        (3, "-", 5, 8),
        (42, "+", 3, None),
        (48, "-", 2, None),
        (43, "*", 3, None),
    ],
)
def test_a_slip_forgets_the_carry_or_borrow(value: int, op: str, digit: int, slipped: int | None) -> None:
    assert task.forget_carry(value, op, digit) == slipped


def test_a_restart_follows_an_error_and_begins_at_the_first_line() -> None:
    rng = random.Random(5)
    errors = ErrorModel(gap_rate=1.0, slip_rate=0.3, wait_rate=1.0, max_restarts=2)
    restarted = 0
    for text in problems():
        made = task.attempt(Expression.parse(text), errors, rng)
        if task.WAIT not in made.lines:
            continue
        restarted += 1
        where = made.lines.index(task.WAIT)
        assert made.first_wrong is not None
        assert made.first_wrong < where
        assert len(made.lines[where + 1]) >= len(made.lines[0])
        assert made.lines.count(task.WAIT) <= 2
    assert restarted > 50


def test_values_alone_are_the_lines_without_the_rest() -> None:
    alone = task.values_only(task.solution(Expression.parse("95*3-3#2-6"))).render(task.REFERENCE_STYLE)
    assert alone == "85|82|64|66|60|\\boxed{60}"
    assert task.style_of(alone) == task.REFERENCE_STYLE


def test_boxed_answers_and_styles_are_read_from_text() -> None:
    assert task.boxed_answer("02;\\boxed{07};wait;\\boxed{02}") == "02"
    assert task.boxed_answer("02;\\boxed{0") is None
    assert task.boxed_answer("02") is None
    assert task.style_of("12+3\n15") == "\n"
    assert task.style_of("\\boxed{15}") is None


def test_splits_are_disjoint_and_stable() -> None:
    rng = random.Random(2)
    drawn = {
        split: {task.draw_problem(rng, split).text for _ in range(200)} for split in ("train", "validation", "heldout")
    }
    assert not drawn["train"] & (drawn["validation"] | drawn["heldout"])
    assert not drawn["validation"] & drawn["heldout"]
    for split, texts in drawn.items():
        assert {task.split_of(text) for text in texts} == {split}


def test_what_is_not_an_expression_is_refused() -> None:
    for text in ("", "1", "12+", "ab+3", "12/3", "12+x"):
        with pytest.raises(ValueError, match=r"expression|operation|invalid literal"):
            Expression.parse(text)
