"""Tasks exact and choice."""

from __future__ import annotations

import pytest

from trd_data.answers import reference_letter
from trd_engine.tasks.registry import load_task
from trd_engine.types import Problem, Verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("abc", Verdict(True, "abc")),
        ("  abc\n", Verdict(True, "abc")),
        (r"I think \boxed{abc}", Verdict(True, "abc")),
        (r"\boxed{x}, no, \boxed{abc}", Verdict(True, "abc")),
        ("ABC", Verdict(False, "ABC")),
        ("it is abc", Verdict(False, "it is abc")),
        (r"abc \boxed{", Verdict(False, "no answer")),
        ("", Verdict(False, "no answer")),
    ],
)
def test_exact(text: str, verdict: Verdict) -> None:
    assert load_task("exact").verify(Problem("1", "?", "abc"), text) == verdict


def test_exact_does_not_take_two_digits_for_one() -> None:
    assert not load_task("exact").verify(Problem("1", "?", "02"), r"\boxed{2}").correct


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"So \boxed{B}.", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{B. green}", "B"),
        (r"\boxed{A} … wait: \boxed{B}", "B"),
        ("Option A is tempting, but the answer is (B).", "B"),
        ("**Answer: B**", "B"),
        ("thinking\n(B)", "B"),
        ("B", "B"),
        ("The answer is B, since option A is not valid.", "B"),
        ("Of options A and C neither; choice D then.", "D"),
        ("the answer is $B$", "B"),
        (r"the answer is \(B\)", "B"),
        ("the answer is (b)", "B"),
        ("The answer is A because it rains.", "A"),
        ("Answer: I believe it is (B)\n(B)", "B"),
        ("Answer: I", "I"),
        (r"\boxed{B \text{ green}}", "B"),
        (r"\boxed{(A) a cat}", "A"),
        (r"\boxed{A. I am}", "A"),
        (r"\boxed{A: B flat}", "A"),
        (r"\boxed{B, green}", "B"),
        (r"\boxed{E\ 12}", "E"),
        (r"\boxed{I}", "I"),
        (r"\boxed{I don't know}", None),
        (r"\boxed{a cat}", None),
        (r"\boxed{A, B, C, D}", None),
        (r"\boxed{(A), (B)}", None),
        (r"\boxed{B or C}", None),
        (r"\boxed{B and C}", None),
        (r"\boxed{B/C}", None),
        (r"\boxed{AB}", None),
        (r"\boxed{B", None),
        ("A or B, who knows", None),
        ("the answer is a matter of taste", None),
        ("", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    verdict = load_task("choice").verify(Problem("1", "?", "B"), text)
    assert verdict == Verdict(letter == "B", letter or "no answer")


@pytest.mark.parametrize("reference", ["b", "B. green", "(B) green", "B) green", "[b]", r"\boxed{B}", "Answer: B"])
def test_choice_takes_the_letter_of_a_reference_too(reference: str) -> None:
    assert load_task("choice").verify(Problem("1", "?", reference), r"\boxed{B}").correct
    assert not load_task("choice").verify(Problem("1", "?", reference), r"\boxed{A}").correct


@pytest.mark.parametrize("reference", ["4", "a dog", "Bob", "A.M. or P.M.", ""])
def test_choice_finds_no_letter_where_a_reference_names_none(reference: str) -> None:
    assert reference_letter(reference) is None
