from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.datasets.lines import LineReader
from service.datasets.rows import RowLedger, RowProblem
from service.errors import PayloadTooLargeError
from service.settings import UploadLimits

LIMITS = UploadLimits(max_bytes=100_000, max_line_bytes=2_000, max_rows=1000, max_json_depth=5)
GOOD = b'{"problem": "1 + 1", "answer": "2", "solution": "two"}\n'


def check(*pieces: bytes, limits: UploadLimits = LIMITS) -> RowLedger:
    ledger = RowLedger(limits)
    reader = LineReader(ledger, limits)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return ledger


def row(**fields: Any) -> bytes:
    values = {"problem": "1 + 1", "answer": "2", **fields}
    return json.dumps({key: value for key, value in values.items() if value is not ...}).encode() + b"\n"


def only_problem(line: bytes) -> RowProblem:
    (problem,) = check(line).problems
    return problem


@pytest.mark.parametrize(
    "line",
    [
        row(),
        row(answer=2),
        row(answer=-0.5),
        row(solution=None),
        row(solution="  "),
        row(id="a-1"),
        row(id=7),
        row(id=""),
        row(extra={"tests": [[1]]}),
        row(problem="é ∑ 漢字 🙂"),
        row().strip(),
        b"\xef\xbb\xbf" + row(),
        row().replace(b"\n", b"\r\n"),
    ],
)
def test_rows_that_are_accepted(line: bytes) -> None:
    ledger = check(line)
    assert ledger.problems == []
    assert ledger.num_rows == 1


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (row(problem=...), "problem", "required; the row's fields: answer"),
        (row(answer=...), "answer", "required"),
        (row(answer=None), "answer", "required"),
        (row(problem=" \t"), "problem", "must not be empty"),
        (row(problem=12), "problem", "problem = 12: must be a string, not a number"),
        (row(answer=True), "answer", "must be a string or a number, not a boolean"),
        (row(answer=["2"]), "answer", "not a list"),
        (row(answer=""), "answer", "must not be empty"),
        (row(solution=3), "solution", "must be a string, not a number"),
        (row(id=1.5), "id", "must be a string or an integer"),
        (row(id="x" * 101), "id", "at most 100 characters"),
        (b'["problem"]\n', None, "must be a JSON object, not a list"),
        (b"3\n", None, "must be a JSON object, not a number"),
        (b'{"problem": "x", \n', None, "not valid JSON: "),
        (b'{"problem": NaN}\n', None, "NaN is not a JSON value"),
        (b'{"problem": "\xff"}\n', None, "not UTF-8"),
        (row(extra=[[[[[1]]]]]), None, "more than 5 levels"),
        (b"[" * 1500 + b"\n", None, "more than 5 levels"),
        (b'{"problem": "\\ud800", "answer": "1"}\n', None, "surrogate"),
        (b'{"problem": "a\\u0000", "answer": "1"}\n', None, "u0000"),
        (b'{"problem": ' + b"1" * 5000, None, "longer than 2000 bytes"),
    ],
)
def test_rows_that_are_refused(line: bytes, field: str | None, words: str) -> None:
    problem = only_problem(line)
    assert problem.row == 1
    assert problem.field == field
    assert words in problem.message


def test_a_bracket_in_a_string_is_no_depth() -> None:
    assert check(row(problem='[{[{[{[{ \\" [{[{')).problems == []


def test_a_string_without_an_end_is_looked_at_once() -> None:
    """A pattern that starts again at each quote would take hours here."""
    limits = UploadLimits(max_bytes=2**21, max_line_bytes=2**21, max_rows=10, max_json_depth=5)
    assert len(check(b'[[[[[[["' + b'\\"' * 500_000, limits=limits).problems) == 1


def test_rows_are_numbered_as_an_editor_shows_them() -> None:
    ledger = check(GOOD + b"\n" + GOOD + b"   \n" + b"broken\n" + GOOD)
    assert ledger.num_rows == 4
    assert [problem.row for problem in ledger.problems] == [5]


def test_the_first_row_without_a_solution_is_known() -> None:
    assert check(GOOD * 3).first_without_solution is None
    assert check(GOOD * 3 + row() + GOOD + row()).first_without_solution == 4


def test_ids_must_differ() -> None:
    ledger = check(row(id="a") + row(id="b") + row(id="a") + row(id=1) + row(id="1") + row())
    assert [(p.row, p.field) for p in ledger.problems] == [(3, "id"), (5, "id")]
    assert "an earlier row has it" in ledger.problems[0].message


def test_problems_are_listed_up_to_a_hundred_and_counted_on() -> None:
    ledger = check(b"broken\n" * 250)
    assert len(ledger.problems) == 100
    assert ledger.num_problems == 250


def test_reading_goes_on_after_a_line_that_is_too_long() -> None:
    ledger = check(GOOD, *[b"x" * 1000] * 30, b"\nbroken\n" + GOOD)
    assert [problem.row for problem in ledger.problems] == [2, 3]
    assert ledger.num_rows == 4


def test_too_many_rows_end_the_upload() -> None:
    with pytest.raises(PayloadTooLargeError, match="3 rows"):
        check(GOOD * 4, limits=replace(LIMITS, max_rows=3))


LINES = st.lists(st.sampled_from([GOOD, b"\n", b"broken\n", row(answer=[]), row(id="é"), b"x" * 3000 + b"\n"]))


@given(LINES, st.lists(st.integers(1, 700), min_size=1))
def test_the_pieces_a_file_comes_in_do_not_matter(lines: list[bytes], sizes: list[int]) -> None:
    content = b"".join(lines)
    pieces, start = [], 0
    while start < len(content):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(content[start : start + size])
        start += size
    whole, cut = check(content), check(*pieces)
    assert cut.problems == whole.problems
    assert (cut.num_rows, cut.first_without_solution) == (whole.num_rows, whole.first_without_solution)
