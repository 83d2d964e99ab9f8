"""Sums that are wrong as they stand, and right where they stand; and wrong ones that no word excuses."""

from __future__ import annotations

import time

import pytest

from trd_engine.tasks.math.equalities import check_equalities


@pytest.mark.parametrize(
    "text",
    [
        # a function or a fraction of the first number
        "\\log 100 + 1 = 3",
        "log 100 + 1 = 3",
        "\\sqrt 16 + 2 = 6",
        "√ 16 + 2 = 6",
        "sin 30 + 1 = 1.5",
        "20% of 50 + 5 = 15",
        "20 percent of 50 + 5 = 15",
        "3/4 of the 10 + 2 = 9",
        "half of 10 + 2 = 7",
        "Half of that 10 + 4 = 7",
        "the square root of the sum 9 + 16 = 5",
        "twice 3 + 4 = 10",
        "The average of 10 + 20 = 15",
        "\\frac{1}{2} 10 + 2 = 7",
        # an operator in words, or in another sign
        "5 mod 3 + 1 = 3",
        "5 choose 2 + 1 = 11",
        "10 divided by 2 + 3 = 8",
        "4 less than 10 + 2 = 8",
        "the sum of 5 and 3 + 4 = 12",
        "add 5 to 3 + 4 = 12",
        "negative 3 + 4 = 1",
        "2 x 3 + 4 = 10",
        "2 ⋅ 3 + 1 = 7",
        "10 – 3 + 2 = 9",
        "10 ^ 3 + 1 = 1001",
        "6 : 2 + 1 = 4",
        "4 + 6 = 2 times 5",
        "4 + 6 = 2 x 5",
        "4 + 5 = 3 squared",
        "4 + 20 = 4!",
        "3 + 1/2 = 3 and a half",
        "4 + 4 = 2 to the power 3",
        "Step 3 - 4 + 5 = 9",
        "20 take away 5 + 5 = 20",
        "5 + 3 = 8 × 2 = 16",
        "Adding (1) + (2) = 7 gives x",
        # numbers that are parts of others
        "12:30 + 30 = 13:00",
        "1,5 + 2 = 3,5",
        # other units
        "12 + 12 = 2 dozen",
        "60 + 60 = 2 hours",
        "60 + 60 = 2\\text{ hours}",
        "60 + 60 = 2 \\text{ hours}",
        "50 + 50 = 1 dollar",
        "50 + 50 = $1",
        "12 + 12 = 2 boxes",
        "1/2 = 50 %",
        "1/2 = 50 \\%",
        "9 - 5 = 8 hours",
        # other ways to count
        "In binary, 101 + 11 = 1000",
        "We count in base 8. So 7 + 1 = 10.",
        "7 + 6 = 1 in Z_12",
        "Working modulo 12. 7 + 6 = 1, and 8 + 6 = 2",
        "On a clock, 9 + 5 = 2",
        "We define an operation by a * b = a + 2b. Then 3 * 4 = 11.",
        "The symbol * means add. So 3 * 4 = 7.",
        "Concatenating, 1 + 2 = 12",
        # not claimed, or not exactly
        "Suppose 2 + 2 = 5, a contradiction",
        "Suppose 2 + 2 = 5",
        "If 2 + 2 = 5 then I am the Pope",
        "Then 2 + 2 = 5. Contradiction.",
        "Then 2 + 2 = 5, which is impossible.",
        "2 + 2 = 5 is false",
        "It is not the case that 2 + 2 = 5.",
        "Is 2 + 2 = 5?",
        "Is it true that 2 + 2 = 5 here? No.",
        "You might think 2 + 2 = 5, but it is 4",
        "12 * 98 = 1200 approximately",
        "That is roughly 12 * 98 = 1200.",
        "The student's mistake was 2 + 2 = 5.",
        "2 + 2 = 5 doesn't hold",
    ],
)
def test_what_says_something_else_is_passed_over(text: str) -> None:
    check = check_equalities(text)
    assert check is None or check.first_wrong is None


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 8",
        "So she has 3 + 4 = 8 apples.",
        "There were 3 + 4 = 8 birds in total",
        "After 3 days she has 4 + 5 = 10 apples",
        "A total of 3 + 4 = 8 apples",
        "The total cost is 3 * 5 = 16, so he pays 16",
        "Step 1: 3 + 4 = 8",
        "1. 3 + 4 = 8",
        "Therefore, $3 + 4 = 8$.",
        "\\(3 + 4 = 8\\)",
        "\\[ 3 + 4 = 8 \\]",
        "$$3 + 4 = 8$$",
        "We get 3 + 4 = 8 and then 5 + 6 = 11",
        "3 + 4 = 8 \\implies x = 8",
        "\\therefore 3 + 4 = 8",
        "x = 3 + 4 = 8",
        "5 + 3 = 9 × 2 = 18",
        "half of 10 is 5, and 3 + 4 = 8",
        "3 + 4 = 8. Wait, that's wrong.",
        "3 + 4 = 8 in total",
        "→ 3 + 4 = 8",
        "3 + 4 = 8 → done",
    ],
)
def test_a_plain_wrong_sum_is_found_among_words(text: str) -> None:
    check = check_equalities(text)
    assert check is not None
    assert check.first_wrong == 0


def test_a_right_sum_stays_a_step_whatever_is_around_it() -> None:
    check = check_equalities("Suppose 3 + 4 = 7, then half of 10 + 4 = 7 and 5 + 5 = 11.")
    assert check is not None
    assert len(check.starts) == 1


@pytest.mark.parametrize(
    "text", ["1 + 1 = 3, ", "so we get 1 + 1 = 3 and ", "$ \\( $ 1 + 1 = 3 \\) $ \n\n", "no 1+1=3 "]
)
def test_a_text_of_wrong_sums_takes_linear_time(text: str) -> None:
    def seconds(num_sums: int) -> float:
        started = time.process_time()
        check_equalities(text * num_sums)
        return time.process_time() - started

    assert seconds(8000) < 16 * max(seconds(1000), 0.02)
