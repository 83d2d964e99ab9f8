"""Rows of a problem and its answer: our own, DeepScaleR, GSM8K, AIME, MATH-500, chat, choice and reasoning-gym rows."""

from __future__ import annotations

import re
from typing import Any

from trd_data.answers import last_boxed
from trd_data.errors import MissingFieldError, RowError
from trd_data.problems import Problem
from trd_data.shapes import fields
from trd_data.shapes.fields import Row, type_name, wrong

_GSM8K_END = re.compile(r"####[ \t]*([^\n]*\S)\s*\Z")
"""The answer is on the last line; the same mark before more text is a heading."""
_GSM8K_CALCULATION = re.compile(r"<<[^<>]*>>")
_KNOWN = {*fields.PROBLEM, *fields.ANSWER, *fields.SOLUTION, *fields.ID}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def from_plain_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (problem, answer, solution), under any of their usual names.

    The answer may instead end the solution: after ``####`` or in its last box.
    """
    problem = fields.text(row, "problem", fields.PROBLEM)
    solution = fields.optional_text(row, fields.SOLUTION)
    answer = fields.optional_text(row, fields.ANSWER)
    if answer is not None and (split := split_gsm8k(answer)) is not None:
        answer, solution = split
    if answer is None:
        answer = final_answer(solution) if solution else None
    if answer is None:
        raise _no_answer(row)
    extra = {name: value for name, value in row.items() if name not in _KNOWN and value is not None}
    return Problem(row_id, problem, answer, solution, extra)


def _no_answer(row: Row) -> RowError:
    name = fields.first_name(row, fields.ANSWER)
    if name is None:
        return fields.missing("answer", fields.ANSWER, row)
    return wrong(name, row[name], "must not be empty")


def from_choice_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a question with its options: MMLU (answer by number), ARC (with labels), a plain list."""
    name = "options" if row.get("choices") is None else "choices"
    options = _options(row, name)
    question = fields.text(row, "problem", fields.PROBLEM)
    listed = "\n".join(f"({letter}) {option}" for letter, (_, option) in zip(LETTERS, options, strict=False))
    letter = _letter(row, options)
    solution = fields.optional_text(row, fields.SOLUTION)
    return Problem(row_id, f"{question}\n\n{listed}", letter, solution, {"num_choices": len(options)})


def from_chat_row(row: Row, row_id: str, task: str) -> Problem:
    """Read an OpenAI fine-tuning row: the user's turn is the problem, the assistant's turn its solution.

    System turns are put before the problem, because not every chat template has a place for them, whereas all
    our prompts, the teacher's included, have one for the problem.
    """
    turns = _turns(row["messages"])
    roles = [role for role, _ in turns if role not in ("system", "developer")]
    if roles not in (["user"], ["user", "assistant"]):
        raise RowError("messages", f"messages: must be one user turn and one assistant turn, not {roles}"[:300])
    spoken = dict(turns)
    if not spoken["user"].strip():
        raise RowError("messages", "messages: the user's turn must not be empty")
    solution = spoken.get("assistant")
    answer = fields.optional_text(row, fields.ANSWER)
    if answer is None and solution:
        answer = final_answer(solution) or (solution.strip() if task == "exact" else None)
    if not answer:
        reason = "is empty" if not (solution or "").strip() else "has no \\boxed{} and no '####' to take it from"
        raise MissingFieldError("answer", f"answer: this field is required; the assistant's turn {reason}")
    system = [text.strip() for role, text in turns if role in ("system", "developer") and text.strip()]
    return Problem(row_id, "\n\n".join([*system, spoken["user"]]), answer, solution)


def from_entry_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a `reasoning-gym` entry. Its answer may be missing if many are right: then only its scorer can tell."""
    question = fields.text(row, "problem", fields.PROBLEM)
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
    """Return answer and worked solution of a GSM8K answer, without its calculator marks; None for other texts."""
    end = _GSM8K_END.search(text)
    if end is None:
        return None
    worked = _GSM8K_CALCULATION.sub("", text[: end.start()]).rstrip()
    return end.group(1), f"{worked}\n\\boxed{{{end.group(1)}}}"


def final_answer(solution: str) -> str | None:
    """Return the answer at the end of a worked solution."""
    split = split_gsm8k(solution)
    return last_boxed(solution) if split is None else split[0]


def _options(row: Row, name: str) -> list[tuple[str, str]]:
    """Return (label, text) of each option."""
    given = fields.parse_json(row[name], name)
    if isinstance(given, dict) and {"text", "label"} <= given.keys():
        labels, texts = given["label"], given["text"]
        if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
            raise RowError(name, f"{name}: label and text must be lists of the same length")
        pairs = list(zip(map(str, labels), map(str, texts), strict=True))
    elif isinstance(given, dict):
        # Parquet gives every row the labels of all rows, and null for an option that the row lacks.
        pairs = [(str(label), str(option)) for label, option in given.items() if option is not None]
    elif isinstance(given, list):
        pairs = [(LETTERS[place : place + 1], str(option)) for place, option in enumerate(given)]
    else:
        raise wrong(name, row[name], f"must be a list or an object, not {type_name(given)}")
    if not 2 <= len(pairs) <= len(LETTERS):
        raise RowError(name, f"{name}: must have 2 to {len(LETTERS)} options, not {len(pairs)}")
    return pairs


def _letter(row: Row, options: list[tuple[str, str]]) -> str:
    """Return the letter under which the right option is listed."""
    name = fields.first_name(row, fields.ANSWER)
    if name is None:
        raise fields.missing("answer", fields.ANSWER, row)
    answer = row[name]
    wanted = str(answer).strip()
    labels = [label for label, _ in options]
    texts = [option for _, option in options]
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    if is_number and wanted not in labels and 0 <= answer < len(options):
        return LETTERS[answer]
    for known in (labels, texts, list(LETTERS[: len(options)])):
        if wanted in known:
            return LETTERS[known.index(wanted)]
    raise wrong(name, answer, f"names none of the options {labels}; give an option's label or its text"[:300])


def _turns(messages: Any) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise wrong("messages", messages, "must be a list of objects with role and content")
    return [(str(turn.get("role")), _content(turn.get("content"))) for turn in messages]


def _content(content: Any) -> str:
    """Return a turn's text, which may be given in typed parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    if not isinstance(content, str):
        raise RowError("messages", "messages: a turn's content must be text")
    return content
