"""Texts and values that a degenerate model, or a program that it wrote, may give: judged, and soon."""

from __future__ import annotations

import time

import pytest

from trd_data.answers import chosen_letter
from trd_data.errors import RowError
from trd_data.shapes.choose import read_for
from trd_engine.tasks.code.answers import extract_program, same_value
from trd_engine.tasks.math.compare import compare
from trd_engine.tasks.math.equalities import check_equalities
from trd_engine.tasks.math.units import spell_out_factors


@pytest.mark.parametrize(
    ("expected", "returned"), [(2.5, str(10**400)), ([1], "[" * 200_000), ([2.5], f"[{10**400}]"), (1, "nonsense")]
)
def test_a_value_that_cannot_be_compared_is_wrong(expected: object, returned: str) -> None:
    assert not same_value(expected, returned)


@pytest.mark.timeout(60)
def test_fences_and_line_ends_without_end_are_read_once() -> None:
    """By pairs, or again at each mark, these would take hours."""
    assert extract_program("```python\n" * 100_000) == ""
    assert check_equalities("\n" * 200_000) is None
    assert check_equalities("=" + " " * 200_000) is None
    assert chosen_letter("answer" + " " * 200_000) is None
    assert chosen_letter("answer" * 100_000) is None
    assert chosen_letter("\\boxed{A" + " ," * 100_000 + "}") == "A"


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "answer",
    [
        "1" + " " * 1900, "\n" * 1900, "\\, " * 600, "\\quad" * 300, "(" * 900 + "1" + ")" * 900,
        "[1," * 400 + "1]" * 400,
        "\\{" * 400 + "\\}" * 400, "½" * 1900, "1 or " * 390, "1 cm " * 390, "\\pm" * 600, "\\frac" * 380, "9!" * 900,
        "\\text{ " * 280, "x=" * 900, "1e1" * 600, "2^" * 900 + "2", "-" * 1900 + "1", "\\cup[1,2]" * 190, "1;" * 900,
    ],
)  # fmt: skip
def test_final_answers_are_read_in_short_time(answer: str) -> None:
    """Answers are at most 2,000 characters: patterns that search again from each one would take minutes."""
    started = time.monotonic()
    for reference in ("5", "(1,2)", answer):
        compare(reference, answer)
    assert time.monotonic() - started < 3.0


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("so\n```python\nx = 1\n```\nprints\n```\n1\n```\n", "x = 1"),
        ("  ```py\nx = 1\n\ny = 2\n  ```", "x = 1\n\ny = 2"),
        ("```\nx = 1\n```", "x = 1"),
        ("```python\nx = 1", ""),
        (
            "1. First:\n\n   ```python\n   n = int(input())\n   if n:\n       print(n)\n   ```\n",
            "n = int(input())\nif n:\n    print(n)",
        ),
        ("- ```python\n  x = 1\n  ```", "x = 1"),
        ("10) ```py\n    x = 1\n    ```", "x = 1"),
        ("  ```python\n  x = 1\n\n  y = 2\n  ```", "x = 1\n\ny = 2"),
        ("    ```python\n  x = 1\n    ```", "x = 1"),
        ("\t```python\n\tif x:\n\t\ty = 1\n\t```", "if x:\n    y = 1"),
        ("```python\n    return 1\n```", "    return 1"),
        ("   ```python\n   s = '''\n     kept\n   '''\n   ```", "s = '''\n  kept\n'''"),
        ("x = 1", "x = 1"),
        ("```python\n```", ""),
        ("```text\nno\n```", ""),
        ("```python\nx = '''\n```json\n'''\n```", "x = '''\n```json\n'''"),
    ],
)
def test_the_program_of_a_text(text: str, program: str) -> None:
    assert extract_program(text) == program


def test_a_letter_that_only_folds_to_another_is_read() -> None:
    assert spell_out_factors("10\\text{ thouſand}") == spell_out_factors("10\\text{ thousand}")


@pytest.mark.parametrize(
    "tests",
    [
        {"kind": "assert", "asserts": []},
        {"kind": "assert", "asserts": [1]},
        {"kind": "assert", "asserts": ["assert f()"], "setup": 5},
        {"kind": "assert", "asserts": ["assert f()"], "preamble": 5},
        {"kind": ["assert"]},
    ],
)
def test_tests_that_test_nothing_are_refused(tests: object) -> None:
    with pytest.raises(RowError, match=r"^tests = "):
        read_for({"problem": "?", "tests": tests}, 0, "code", {}).required()
