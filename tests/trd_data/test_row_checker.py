from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from trd_data.check import FileReport, check_file
from trd_data.errors import FileTooLargeError
from trd_data.readers import RowLimits
from trd_data.rows import ListedError

LIMITS = RowLimits(max_row_bytes=2_000, max_rows=1000, max_depth=5)
GOOD = b'{"problem": "1 + 1", "answer": "2", "solution": "two"}\n'


def check(*pieces: bytes, limits: RowLimits = LIMITS) -> FileReport:
    return check_file(io.BytesIO(b"".join(pieces)), limits)


def row(**fields: Any) -> bytes:
    values = {"problem": "1 + 1", "answer": "2", **fields}
    return json.dumps({key: value for key, value in values.items() if value is not ...}).encode() + b"\n"


def only_error(line: bytes) -> ListedError:
    (error,) = check(line).errors
    return error


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
        row(id=1.0),
        row(problem=12),
        row(answer=True),
        row(answer=["2"]),
        row(solution=3),
        row(id=""),
        row(extra={"tests": [[1]]}),
        row(problem="é ∑ 漢字 🙂"),
        row().strip(),
        b"\xef\xbb\xbf" + row(),
        row().replace(b"\n", b"\r\n"),
    ],
)
def test_rows_that_are_accepted(line: bytes) -> None:
    report = check(line)
    assert report.errors == []
    assert report.num_rows == 1


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (row(problem=...), "problem", "required; the row's fields: answer"),
        (row(answer=...), "answer", "required"),
        (row(answer=None), "answer", "required"),
        (row(problem=" \t"), "problem", "must not be empty"),
        (row(problem={}), "problem", "problem = {}: must be a string or a number, not an object"),
        (row(answer=["2", "3"]), "answer", "not a list"),
        (b'{"problem": "x", "answer": 1e400}\n', "answer", "answer = 1e400: must be finite"),
        (row(answer=""), "answer", "must not be empty"),
        (row(solution={}), "solution", "must be a string or a number, not an object"),
        (row(id=[]), "id", "must be a string or a number, not a list"),
        (row(id="x" * 101), "id", "at most 100 characters"),
        (b'["problem"]\n', None, "must be a JSON object, not a list"),
        (b"3\n", None, "must be a JSON object, not a number"),
        (b'{"problem": "x", \n', None, "not valid JSON: "),
        (b'{"problem": NaN}\n', None, "NaN is not a JSON value"),
        (b'{"problem": "\xff"}\n', None, "not UTF-8"),
        (row(extra=[[[[[1]]]]]), None, "more than 5 levels"),
        (b"[" * 1500 + b"\n", None, "more than 5 levels"),
        (b'{"problem": "\\ud800", "answer": "1"}\n', "problem", "surrogate"),
        (b'{"problem": "x", "answer": "1", "solution": [{"\\u0000": 1}]}\n', "solution", "u0000"),
        (b'{"problem": "x", "answer": "1", "\\udfff": 1}\n', None, "half a surrogate pair"),
        (b'{"problem": "a\\u0000", "answer": "1"}\n', "problem", "u0000"),
        (b'{"problem": ' + b"1" * 5000, None, "longer than 2000 bytes"),
    ],
)
def test_rows_that_are_refused(line: bytes, field: str | None, words: str) -> None:
    error = only_error(line)
    assert (error.row, error.field) == (1, field)
    assert words in error.message


def test_a_bracket_in_a_string_is_no_depth() -> None:
    assert check(row(problem='[{[{[{[{ \\" [{[{')).errors == []


def test_a_string_without_an_end_is_looked_at_once() -> None:
    """A pattern that starts again at each quote would take hours here."""
    limits = RowLimits(max_row_bytes=2**21, max_rows=10, max_depth=5)
    assert len(check(b'[[[[[[["' + b'\\"' * 500_000, limits=limits).errors) == 1


def test_rows_are_numbered_as_an_editor_shows_them() -> None:
    report = check(GOOD + b"\n" + GOOD + b"   \n" + b"broken\n" + GOOD)
    assert report.num_rows == 4
    assert [error.row for error in report.errors] == [5]


def test_the_first_row_without_a_solution_is_known() -> None:
    assert check(GOOD * 3).first_without_solution is None
    assert check(GOOD * 3 + row() + GOOD + row()).first_without_solution == 4


def test_ids_must_differ() -> None:
    report = check(row(id="a") + row(id="b") + row(id="a") + row(id=1) + row(id="1") + row())
    assert [(p.row, p.field) for p in report.errors] == [(3, "id"), (5, "id")]
    assert "an earlier row has it" in report.errors[0].message


def test_problems_are_listed_up_to_a_hundred_and_counted_on() -> None:
    report = check(b"broken\n" * 250)
    assert len(report.errors) == 100
    assert report.num_errors == 250


def test_reading_goes_on_after_a_line_that_is_too_long() -> None:
    report = check(GOOD, *[b"x" * 1000] * 30, b"\nbroken\n" + GOOD)
    assert [error.row for error in report.errors] == [2, 3]
    assert report.num_rows == 4


def test_too_many_rows_end_the_upload() -> None:
    with pytest.raises(FileTooLargeError, match="3 rows"):
        check(GOOD * 4, limits=replace(LIMITS, max_rows=3))
