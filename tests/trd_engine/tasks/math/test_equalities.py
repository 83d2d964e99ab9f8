"""Plain equalities that stand alone are recomputed; everything that may mean something else is passed over."""

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
        # the same over several lines
        "half of\n10 + 2 = 7",
        "60 + 60 = 2\nhours",
        "Suppose that\n2 + 2 = 5.\n",
        "2 + 2 = 5\nis false",
        "In binary:\n101 + 11 = 1000\n",
        "We compute modulo 12.\n\n7 + 6 = 1\n8 + 6 = 2",
        "A clock shows 9.\n9 + 5 = 2",
        # no plain arithmetic
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
        "2 ** 3 = 9",
        "7 // 2 = 4",
        "- 3 + 4 = 7",
        "* 3 + 4 = 12",
        "\\frac{6}{2} = 3",
        "f(3) + 1 = 12",
        "1 / 0 = 7",
        "2(3 + 4) = 12",
        "(1) + (2) = 7",
        "3 + = 4",
        "((((3 + 4 = 9",
        "1 + 2 = 3 = ",
        "2 + 2 = 5?",
        "$50 + 50 = 1",
        "$3 + 4 = 8\\)",
        "1+" * 200 + "1 = 2",
    ],
)
def test_what_says_something_else_is_passed_over(text: str) -> None:
    check = check_equalities(text)
    assert check is None or check.first_wrong is None


RIGHT = [
    "12 + 3 \\times 4 = 24",
    "$12 + 3 \\cdot 4 = 24$",
    "(12 + 3) × 4 = 60",
    "1,200 + 34 = 1,234",
    "x = 3 + 4 = 7",
    "10 / 3 = 3.33; 2/3 = 0.667",
    "3 - 5 = -2",
    "2 * 3 = 6 = 12 / 2",
    "1. 3 + 4 = 7",
    "-3 + 4 = 1 = 3 - 2",
    "Modulo 12 this is 1:\n7 + 6 = 13",
]


@pytest.mark.parametrize("text", RIGHT)
def test_right_arithmetic_is_found_and_right(text: str) -> None:
    check = check_equalities(text)
    assert check is not None
    assert check.first_wrong is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("3 + 4 = 8", 0),
        ("12 + 3 \\times 4 = 60", 0),
        ("We add.\n12 + 3 = 15\n15 - 7 = 9.", 20),
        ("x = 3 + 4 = 8", 4),
        ("0.5 + 0.2 = 0.8", 0),
        ("8 / 2 = 5", 0),
        ("10 / 3 = 3.43", 0),
        ("1,200 + 34 = 1,334", 0),
        ("2 + 2 = 4 = 1 + 4", 8),
        ("5 + 3 = 9 × 2 = 18", 0),
        ("Step 1: 3 + 4 = 8", 8),
        ("1. 3 + 4 = 8", 3),
        ("\\(3 + 4 = 8\\)", 2),
        ("\\[ 3 + 4 = 8 \\]", 3),
        ("So we get\n\n$$3 + 4 = 8$$\n\napples", 13),
        ("3 + 4 = 7; 5 + 6 = 12", 11),
        ("1" * 40 + " + 1 = 2", 0),
    ],
)
def test_wrong_arithmetic_is_found_where_it_stands(text: str, place: int) -> None:
    check = check_equalities(text)
    assert check is not None
    assert check.first_wrong is not None
    assert check.starts[check.first_wrong] == place


@pytest.mark.parametrize(
    "text", ["1 + 1 = 3\n", "so we get 1 + 1 = 3 and ", "$ \\( $ 1 + 1 = 3 \\) $ \n\n", "no 1+1=3 "]
)
def test_a_text_of_wrong_sums_takes_linear_time(text: str) -> None:
    def seconds(num_sums: int) -> float:
        started = time.process_time()
        check_equalities(text * num_sums)
        return time.process_time() - started

    assert seconds(8000) < 16 * max(seconds(1000), 0.02)


def test_runaway_texts_are_passed_over_in_time() -> None:
    assert check_equalities("1 + 1 = 2\n" * 20_000) is not None
    assert check_equalities("(" * 100_000 + "=" * 100_000) is None
    check_equalities("(" * 145 + "1 + 1" + ")" * 145 + "= 2")
