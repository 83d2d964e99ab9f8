"""What of a row a prompt shows: the problem and the reference solution, as the engine puts them together.

The engine reads rows itself (`trd_engine.data`); a test holds both to the same texts. Rows of programming
problems are shown with their question alone: the engine adds starter code or a test to it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.datasets.shapes import ANSWER, ID, PROBLEM, SOLUTION, Row, from_json, is_programming

_GSM8K_MARK = "####"
_GSM8K_CALCULATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class ProblemText:
    """One row's texts."""

    id: str | None
    problem: str
    solution: str | None
    is_exact: bool
    """False for programming problems, whose question the engine adds to."""


def problem_text(row: Row) -> ProblemText:
    """The texts of a row that was accepted at upload."""
    row_id = _first(row, ID)
    if is_programming(row):
        question = _first(row, (*PROBLEM, "text", "question_content")) or ""
        return ProblemText(row_id, question, _first(row, SOLUTION), is_exact=False)
    if row.get("messages") is not None:
        spoken = {turn["role"]: _content(turn["content"]) for turn in row["messages"]}
        system = (spoken.get("system") or spoken.get("developer") or "").strip()
        problem = f"{system}\n\n{spoken['user']}" if system else spoken["user"]
        return ProblemText(row_id, problem, spoken.get("assistant"), is_exact=True)
    problem = _first(row, PROBLEM) or ""
    options = row.get("choices") if row.get("choices") is not None else row.get("options")
    if options is not None:
        listed = "\n".join(f"({letter}) {option}" for letter, option in _lettered(from_json(options)))
        return ProblemText(row_id, f"{problem}\n\n{listed}", _first(row, SOLUTION), is_exact=True)
    return ProblemText(row_id, problem, _plain_solution(row), is_exact=True)


def _plain_solution(row: Row) -> str | None:
    answer = _first(row, ANSWER)
    if answer is None or _GSM8K_MARK not in answer:
        return _first(row, SOLUTION)
    worked, _, value = answer.rpartition(_GSM8K_MARK)
    return f"{_GSM8K_CALCULATION.sub('', worked).rstrip()}\n\\boxed{{{value.strip()}}}"


def _lettered(options: Any) -> list[tuple[str, str]]:
    if isinstance(options, dict):
        options = options["text"] if isinstance(options.get("text"), list) else list(options.values())
    return [(letter, str(option)) for letter, option in zip(string.ascii_uppercase, options, strict=False)]


def _content(content: Any) -> str:
    return "".join(part["text"] for part in content) if isinstance(content, list) else str(content)


def _first(row: Row, names: Sequence[str]) -> str | None:
    name = next((name for name in names if row.get(name) is not None), None)
    return None if name is None or not str(row[name]).strip() else str(row[name])
