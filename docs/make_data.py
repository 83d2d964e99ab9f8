"""``python -m docs.make_data`` writes the tables of docs/data.md between their marks, from the shapes of rows.

A test compares the file with this output.
"""

from __future__ import annotations

from pathlib import Path

from trd_data.shapes import fields
from trd_data.shapes.choice import LETTERS
from trd_data.shapes.fields import Shape
from trd_data.shapes.known import ALL_SHAPES, PLAIN, PLAIN_DATASETS

TARGET = Path(__file__).with_name("data.md")
BEGIN, END = "<!-- written by `make data-docs`: do not edit -->\n", "<!-- end -->\n"

_NAMED = {
    fields.PROBLEM: "problem",
    fields.ANSWER: "answer",
    fields.SOLUTION: "solution",
}
"""Groups of names that the second table lists."""
_LETTERS = tuple((letter,) for letter in LETTERS[1:])
"""Columns of options beside A, which stands for all of them."""


def tables() -> str:
    """Return the table of shapes, and that of the names that our fields may have."""
    shapes = "| shape | recognised by | tasks | columns read | not read, and no notice |\n|---|---|---|---|---|\n"
    names = "| our field | read from the first of these columns that has a value |\n|---|---|\n"
    known = {**{field: group for group, field in _NAMED.items()}, "id": fields.ID, "data set": fields.BENCHMARK}
    return (
        shapes
        + "".join(map(_row, ALL_SHAPES))
        + "\n"
        + names
        + "".join(f"| {field} | {_code(group)} |\n" for field, group in known.items())
    )


def document(page: str) -> str:
    """Return the page with its tables anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables() + END + after


def _row(shape: Shape) -> str:
    recognised = [_code(sorted(shape.columns))] if shape.columns else []
    recognised += [shape.recognised_by] if shape.recognised_by else []
    name = f"{shape.name}, read as {PLAIN.name}" if shape in PLAIN_DATASETS else shape.name
    read = ", ".join(_group(group) for group in shape.reads if group not in _LETTERS)
    return f"| {name} | {'; '.join(recognised)} | {shape.tasks} | {read} | {_code(shape.ignores)} |\n"


def _group(names: tuple[str, ...]) -> str:
    if names in _NAMED:
        return _NAMED[names]
    own = names[: -len(fields.PROBLEM)] if names[-len(fields.PROBLEM) :] == fields.PROBLEM else names
    return " or ".join(f"`{name}`" for name in own) + (" or problem" if own != names else "")


def _code(names: object) -> str:
    assert isinstance(names, list | tuple)
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    TARGET.write_text(document(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
