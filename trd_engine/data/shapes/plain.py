"""Rows of a problem and its answer: our own, DeepScaleR, GSM8K, AIME, MATH-500, chat, choice and generators'."""

from __future__ import annotations

import re
from typing import Any

from trd_engine.data.shapes import fields
from trd_engine.data.shapes.fields import Row, RowError
from trd_engine.tasks.boxed import last_boxed
from trd_engine.types import Problem

_GSM8K_END = re.compile(r"####[ \t]*([^\n]*\S)\s*\Z")
"""The answer is the last line; the same mark before more text is a heading."""
_GSM8K_CALCULATION = re.compile(r"<<[^<>]*>>")
_KNOWN = {*fields.PROBLEM, *fields.ANSWER, *fields.SOLUTION, *fields.ID}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def from_plain_row(row: Row, row_id: str, task: str) -> Problem:
    """A row of (problem, answer, solution), under any of the usual names.

    An answer may stand at the end of the solution instead: after ``####`` or in its last box.
    """
    problem = fields.text(row, "problem", fields.PROBLEM)
    solution = fields.optional_text(row, fields.SOLUTION)
    answer = fields.optional_text(row, fields.ANSWER)
    if answer is not None and (split := split_gsm8k(answer)) is not None:
        answer, solution = split
    if answer is None:
        answer = final_answer(solution) if solution else None
    if answer is None:
        raise fields.missing("answer", fields.ANSWER, row)
    return Problem(row_id, problem, answer, solution, _rest(row))


def from_choice_row(row: Row, row_id: str, task: str) -> Problem:
    """A question with its options: MMLU (answer by number), ARC (labels of their own), a plain list."""
    options = _options(row)
    question = fields.text(row, "problem", fields.PROBLEM)
    listed = "\n".join(f"({letter}) {option}" for letter, (_, option) in zip(LETTERS, options, strict=False))
    name = fields.first_name(row, fields.ANSWER)
    if name is None:
        raise fields.missing("answer", fields.ANSWER, row)
    letter = _letter(row[name], options)
    solution = fields.optional_text(row, fields.SOLUTION)
    return Problem(row_id, f"{question}\n\n{listed}", letter, solution, {"num_choices": len(options)})


def from_chat_row(row: Row, row_id: str, task: str) -> Problem:
    """An OpenAI fine-tuning row: the user's turn is the problem, the assistant's its solution.

    What the system says stands before the problem: not every chat template has a place for it, and every prompt of
    ours, the teacher's too, has one for the problem.
    """
    turns = _turns(row["messages"])
    roles = [role for role, _ in turns if role not in ("system", "developer")]
    if roles not in (["user"], ["user", "assistant"]):
        raise RowError(f"field 'messages' must be one user turn and one assistant turn, not {roles}")
    spoken = dict(turns)
    if not spoken["user"].strip():
        raise RowError("field 'messages': the user's turn is empty")
    solution = spoken.get("assistant")
    answer = fields.optional_text(row, fields.ANSWER)
    if answer is None and solution:
        answer = final_answer(solution) or (solution.strip() if task == "exact" else None)
    if not answer:
        raise RowError("field 'answer' is missing; the assistant's turn has no \\boxed{} and no '####' to take it from")
    system = [text.strip() for role, text in turns if role in ("system", "developer") and text.strip()]
    return Problem(row_id, "\n\n".join([*system, spoken["user"]]), answer, solution)


def from_entry_row(row: Row, row_id: str, task: str) -> Problem:
    """A `reasoning-gym` entry; where it has no answer, because many are right, only its own scorer can tell.

    No generator makes solutions; a file of entries may bring them.
    """
    question = fields.text(row, "problem", fields.PROBLEM)
    metadata = fields.parse_json(row.get("metadata"), "metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("source_dataset"), str):
        raise RowError(
            "field 'metadata' must have the name of its generator as 'source_dataset'; "
            "for answers that are compared as text, use task exact"
        )
    name = fields.first_name(row, fields.ANSWER)
    entry = {"question": question, "answer": None if name is None else row[name], "metadata": metadata}
    origin = {"generated": row["generated"]} if "generated" in row else {}
    answer = fields.optional_text(row, fields.ANSWER) or ""
    return Problem(row_id, question, answer, fields.optional_text(row, fields.SOLUTION), {"entry": entry, **origin})


def split_gsm8k(text: str) -> tuple[str, str] | None:
    """Answer and worked solution of a GSM8K answer, without its calculator marks; None of any other text."""
    end = _GSM8K_END.search(text)
    if end is None:
        return None
    worked = _GSM8K_CALCULATION.sub("", text[: end.start()]).rstrip()
    return end.group(1), f"{worked}\n\\boxed{{{end.group(1)}}}"


def final_answer(solution: str) -> str | None:
    """The answer that a worked solution ends with."""
    split = split_gsm8k(solution)
    return last_boxed(solution) if split is None else split[0]


def _rest(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _KNOWN and value is not None}


def _options(row: Row) -> list[tuple[str, str]]:
    """(label, text) of each option."""
    given = fields.parse_json(row["options"] if row.get("choices") is None else row["choices"], "choices")
    if isinstance(given, dict) and {"text", "label"} <= given.keys():
        pairs = _labelled(given["label"], given["text"])
    elif isinstance(given, dict):
        # Parquet gives every row the labels of all rows, null where it has no such option.
        pairs = [(str(label), str(option)) for label, option in given.items() if option is not None]
    elif isinstance(given, list):
        pairs = [(LETTERS[place], str(option)) for place, option in enumerate(given[: len(LETTERS)])]
    else:
        raise RowError(f"field 'choices' must be a list or an object, not {type(given).__name__}")
    if not 2 <= len(pairs) <= len(LETTERS):
        raise RowError(f"field 'choices' must have 2 to {len(LETTERS)} options, not {len(pairs)}")
    return pairs


def _labelled(labels: Any, texts: Any) -> list[tuple[str, str]]:
    if not isinstance(labels, list) or not isinstance(texts, list):
        raise RowError("field 'choices' must have lists as label and text")
    if len(labels) != len(texts):
        raise RowError(f"field 'choices' has {len(labels)} labels for {len(texts)} texts; give each text its label")
    return list(zip(map(str, labels), map(str, texts), strict=True))


def _letter(answer: Any, options: list[tuple[str, str]]) -> str:
    """The letter under which the right option is listed."""
    wanted = str(answer).strip()
    labels = [label for label, _ in options]
    texts = [option for _, option in options]
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    if is_number and wanted not in labels and 0 <= answer < len(options):
        return LETTERS[answer]
    for known in (labels, texts, list(LETTERS[: len(options)])):
        if wanted in known:
            return LETTERS[known.index(wanted)]
    raise RowError(f"field 'answer' is {wanted!r}, which is none of the options {labels}; give one's label or text")


def _turns(messages: Any) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise RowError("field 'messages' must be a list of objects with role and content")
    return [(str(turn.get("role")), _content(turn.get("content"))) for turn in messages]


def _content(content: Any) -> str:
    """A turn's text, whole or in typed parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    if not isinstance(content, str):
        raise RowError("field 'messages': a turn's content must be text")
    return content
