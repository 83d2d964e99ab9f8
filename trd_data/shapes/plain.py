"""Rows of a problem and its answer: our own, Alpaca, DeepScaleR, GSM8K, AIME, MATH, Minerva and reasoning-gym rows."""

from __future__ import annotations

import re

from trd_data.answers import last_boxed
from trd_data.errors import MissingFieldError, RowError
from trd_data.problems import Problem
from trd_data.shapes import fields
from trd_data.shapes.fields import Row, wrong

_GSM8K_MARK = "####"
_GSM8K_CALCULATION = re.compile(r"<<[^<>]*>>")


def from_plain_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (problem, answer, solution), under any of their usual names.

    The answer may instead end the solution: after ``####`` or in its last box.
    """
    problem = fields.problem_text(row)
    solution = fields.optional_text(row, fields.SOLUTION)
    answer = fields.optional_text(row, fields.ANSWER)
    if answer is not None and (split := split_gsm8k(answer)) is not None:
        answer, solution = split
    if answer is None:
        answer = final_answer(solution) if solution else None
    if answer is None:
        raise _no_answer(row)
    return Problem(row_id, problem, answer, solution)


def _no_answer(row: Row) -> RowError:
    name = fields.first_name(row, fields.ANSWER)
    if name is None:
        error = fields.missing("answer", fields.ANSWER, row)
        solution = fields.first_name(row, fields.SOLUTION)
        if solution is None:
            return error
        return MissingFieldError("answer", f"{error.message}; {solution} ends with no closed \\boxed{{}} and no '####'")
    return wrong(name, row[name], "must not be empty")


def from_alpaca_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (instruction, input, output): the input continues the instruction, the output is the solution."""
    problem = fields.problem_text(row)
    solution = fields.optional_text(row, (*fields.SOLUTION, "output"))
    answer = fields.optional_text(row, fields.ANSWER)
    if answer is not None and (split := split_gsm8k(answer)) is not None:
        answer, solution = split
    if answer is None and solution:
        answer = final_answer(solution) or (solution.strip() if task == "exact" else None)
    if answer is None:
        reason = "the output has no \\boxed{} and no '####' to take it from" if solution else "there is no output"
        raise MissingFieldError("answer", f"answer: this field is required; {reason}")
    return Problem(row_id, problem, answer, solution)


def from_entry_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a `reasoning-gym` entry. Its answer may be missing if many are right: then only its scorer can tell."""
    question = fields.problem_text(row)
    metadata = fields.parse_json(row.get("metadata"), "metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("source_dataset"), str):
        raise wrong(
            "metadata",
            metadata,
            "must name the row's generator as source_dataset; for answers that are compared as text, use task exact",
        )
    name = fields.first_name(row, fields.ANSWER)
    entry = {"question": question, "answer": None if name is None else row[name], "metadata": metadata}
    origin = {"generated": row["generated"]} if "generated" in row else {}
    answer = fields.optional_text(row, fields.ANSWER) or ""
    return Problem(row_id, question, answer, fields.optional_text(row, fields.SOLUTION), {"entry": entry, **origin})


def split_gsm8k(text: str) -> tuple[str, str] | None:
    """Return answer and worked solution of a GSM8K answer, without its calculator marks; None for other texts.

    The answer is on the last line; the same mark before more text is a heading.
    """
    text = text.rstrip()
    mark = text.find(_GSM8K_MARK, text.rfind("\n") + 1)
    answer = text[mark + len(_GSM8K_MARK) :].strip() if mark >= 0 else ""
    if not answer:
        return None
    worked = _GSM8K_CALCULATION.sub("", text[:mark]).rstrip()
    return answer, f"{worked}\n\\boxed{{{answer}}}"


def final_answer(solution: str) -> str | None:
    """Return the answer at the end of a worked solution."""
    split = split_gsm8k(solution)
    return last_boxed(solution) if split is None else split[0]
