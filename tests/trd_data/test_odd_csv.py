"""CSV as spreadsheets, databases and scripts write it: read, or refused with what to do."""

from __future__ import annotations

import csv
import io
import json
import re
import time

import pytest

from trd_data.check import check_file, first_problems
from trd_data.errors import DataFileError
from trd_data.readers import RowLimits

LIMITS = RowLimits(max_row_bytes=10_000, max_rows=100, max_depth=16, max_unpacked_bytes=2**22)
USER = {"role": "user", "content": "1 + 1"}
ASSISTANT = {"role": "assistant", "content": r"so \boxed{2}"}


def cells(*rows: list[object]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


READ = {
    "spaces behind delimiters": 'problem, answer\n"1 + 1", "2"\n',
    "quotes with a delimiter behind a space": 'problem, answer, id\n"1 + 1", "2", "a, b"\n',
    "vertical bars": "problem|answer\n1 + 1|2\n",
    "blank lines before the header": "\n\r\nproblem,answer\n1 + 1,2\n",
    "delimiters at the ends of rows": "problem,answer\n1 + 1,2,\n",
    "delimiters at all ends": "problem,answer,\n1 + 1,2,\n",
    "an index without a name": ",problem,answer\n0,1 + 1,2\n",
    "line breaks of old Macintoshes": "problem,answer\r1 + 1,2\r",
    "a mark before a quote": '\ufeff"problem","answer"\n"1 + 1","2"\n',
    "one column of chats": cells(["messages"], [json.dumps([USER, ASSISTANT])]),
    "one column of chats in quotes": '"messages"\n' + cells([json.dumps([USER, ASSISTANT])]),
    "turns as prompt": cells(["prompt", "answer"], [json.dumps([USER]), 2]),
    "turns as prompt and completion": cells(["prompt", "completion"], [json.dumps([USER]), json.dumps([ASSISTANT])]),
    "turns and a reward": cells(["prompt", "reward_model"], [json.dumps([USER]), json.dumps({"ground_truth": "2"})]),
}


@pytest.mark.parametrize("name", READ)
def test_odd_csv_is_read(name: str) -> None:
    content = READ[name].encode()
    report = check_file(io.BytesIO(content), LIMITS)
    assert (report.format, report.num_rows, report.errors) == ("csv", 1, [])
    [(number, problem)] = first_problems(io.BytesIO(content), "math", 5)
    assert (number, problem.problem, problem.answer) == (1, "1 + 1", "2")


def test_spaces_in_front_of_a_cell_stay_unless_the_header_has_them() -> None:
    for header, shown in (("prompt,completion", " blue"), ("prompt, completion", "blue")):
        content = f"{header}\nThe sky is, blue\n".encode()
        [(_, problem)] = first_problems(io.BytesIO(content), "exact", 5)
        assert problem.solution == shown


WRONG_ROWS = {
    "one column of problems": ("problem\n1 + 1\n", "answer: this field is required.*--column answer=NAME"),
    "turns as Python writes them": (
        cells(["prompt", "answer"], [[USER], 2]),
        "prompt = .*: is not valid JSON: .*; write lists and objects within a cell with json.dumps",
    ),
    "options as pandas writes them": (
        cells(["question", "choices", "answer"], ["q", "['x' 'y']", 1]),
        "choices = .*json.dumps",
    ),
    "too few cells": ("problem,answer\n1 + 1\n", "has 1 cells, and the header 2"),
    "too many cells": ("problem,answer\n1 + 1,2,3\n", "has 3 cells, and the header 2; quote cells"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_an_odd_row_is_refused_with_what_to_do(name: str) -> None:
    content, words = WRONG_ROWS[name]
    report = check_file(io.BytesIO(content.encode()), LIMITS)
    assert (report.format, report.num_errors) == ("csv", 1)
    assert re.search(words, report.errors[0].message)


def test_odd_headers_are_refused_with_what_to_do() -> None:
    for content, words in (
        ("sep=;\nproblem;answer\n1 + 1;2\n", "begins with the line 'sep=' of a spreadsheet; remove"),
        (",,problem,answer\n0,0,1 + 1,2\n", "has columns without a name; name each"),
        ("problem,answer,answer\n1,2,3\n", "names 'answer' twice; rename one"),
    ):
        with pytest.raises(DataFileError, match=words):
            check_file(io.BytesIO(content.encode()), LIMITS)
    assert check_file(io.BytesIO(b"problem\n"), LIMITS).num_rows == 0


def test_a_header_of_many_columns_takes_time_in_proportion() -> None:
    """A file of a megabyte would occupy a child for minutes."""
    names = ["problem", "answer", *(f"c{number}" for number in range(40_000))]
    started = time.process_time()
    assert check_file(io.BytesIO(",".join(names).encode()), RowLimits()).num_rows == 0
    assert time.process_time() - started < 4
