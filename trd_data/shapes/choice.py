"""Rows of a question with options, of which one is right."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trd_data.errors import RowError
from trd_data.problems import Problem
from trd_data.shapes import fields
from trd_data.shapes.fields import Row, type_name, wrong

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPTIONS = ("choices", "options")


def has_options(there: Collection[str]) -> bool:
    """Return whether a row with values in these columns has options: in one column, or in one for each of A, B and so
    on."""
    return any(name in there for name in OPTIONS) or all(letter in there for letter in "AB")


def from_choice_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a question with its options: MMLU (answer by number), ARC (with labels), a plain list, a column for each."""
    options = listed_options(row)
    question = fields.problem_text(row)
    listed = "\n".join(f"({letter}) {option}" for letter, (_, option) in zip(LETTERS, options, strict=False))
    letter = _letter(row, options)
    solution = fields.optional_text(row, fields.SOLUTION)
    return Problem(row_id, f"{question}\n\n{listed}", letter, solution, {"num_choices": len(options)})


def listed_options(row: Row) -> list[tuple[str, str]]:
    """Return (label, text) of each option of a row that has some."""
    name = fields.first_name(row, OPTIONS)
    if name is None:
        name = "options"
        given: Any = {letter: row[letter] for letter in LETTERS if fields.has_value(row, letter)}
    else:
        given = fields.parse_json(row[name], name)
    if isinstance(given, dict) and {"text", "label"} <= given.keys():
        labels, texts = given["label"], given["text"]
        if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
            raise RowError(name, f"{name}: label and text must be lists of the same length")
        pairs = list(zip(labels, texts, strict=True))
    elif isinstance(given, dict):
        # Parquet gives every row the labels of all rows, and null for an option that the row lacks.
        pairs = [(label, option) for label, option in given.items() if option is not None]
    elif isinstance(given, list):
        pairs = [(LETTERS[place : place + 1], option) for place, option in enumerate(given)]
    else:
        raise wrong(name, given, f"must be a list or an object, not {type_name(given)}")
    if not 2 <= len(pairs) <= len(LETTERS):
        raise RowError(name, f"{name}: must have 2 to {len(LETTERS)} options, not {len(pairs)}")
    return [(fields.as_text(label, name), fields.as_text(option, name)) for label, option in pairs]


def _letter(row: Row, options: list[tuple[str, str]]) -> str:
    """Return the letter under which the right option is listed."""
    name = fields.first_name(row, fields.ANSWER)
    if name is None:
        raise fields.missing("answer", fields.ANSWER, row)
    answer = row[name]
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    answer = int(answer) if isinstance(answer, float) and answer.is_integer() else answer
    wanted = fields.as_text(answer, name).strip()
    labels = [label for label, _ in options]
    texts = [option for _, option in options]
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    if is_number and wanted not in labels and 0 <= answer < len(options):
        return LETTERS[answer]
    for known in (labels, texts, list(LETTERS[: len(options)])):
        if wanted in known:
            return LETTERS[known.index(wanted)]
    if wanted.isdecimal() and int(wanted) < len(options):  # CSV has no numbers
        return LETTERS[int(wanted)]
    raise wrong(name, answer, f"names none of the options {labels}; give an option's label or its text"[:300])
