"""Rows whose problem is given as turns of a chat: OpenAI, ShareGPT, verl and TRL rows, and prompts with a completion.

A row has one turn of the user and at most one of the assistant. System turns are put before the problem, because not
every chat template has a place for them, whereas all our prompts, the teacher's included, have one for the problem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trd_data.errors import MissingFieldError, RowError
from trd_data.problems import Problem
from trd_data.shapes import fields
from trd_data.shapes.code import tests_of_cases
from trd_data.shapes.fields import Row, wrong
from trd_data.shapes.plain import final_answer

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}

MAY_HOLD_TURNS = frozenset({"prompt", "completion"})
"""Columns that hold either a text or turns."""
_TURNS = re.compile(r"\s*\[\s*\{\s*[\"'](?:role|content|from|value)[\"']\s*:")


@dataclass(frozen=True)
class _Chat:
    """The turns of one row."""

    problem: str
    solution: str | None
    """What the assistant says."""


def parse_turns(value: Any, name: str) -> Any:
    """Return the list of turns that a text is the JSON of, as in a cell of CSV; any other value as it is.

    Raises RowError if the JSON is not valid, as that of Python's `str` is not.
    """
    return fields.parse_json(value, name) if isinstance(value, str) and _TURNS.match(value) else value


def from_messages_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (messages), as OpenAI's fine-tuning has it: the assistant's turn is the solution."""
    return _problem(row, row_id, task, _chat(row["messages"], "messages"))


def from_sharegpt_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (conversations), whose turns have from and value, and optionally (system)."""
    return _problem(
        row, row_id, task, _chat(row["conversations"], "conversations", fields.optional_text(row, ("system",)))
    )


def from_prompt_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of TRL: a prompt, as text or turns, with a completion, an answer or both."""
    completion = row["completion"] if fields.has_value(row, "completion") else None
    if isinstance(row["prompt"], str):
        problem = fields.text(row, "problem", ("prompt",))
        solution = None if completion is None else fields.as_text(completion, "completion")
        return _problem(row, row_id, task, _Chat(problem, solution))
    chat = _chat(row["prompt"], "prompt")
    if isinstance(completion, list):
        said = [text for role, text in _turns(completion, "completion") if role == "assistant"]
        if len(said) != 1:
            raise wrong("completion", completion, "must have one turn, the assistant's")
        chat = _Chat(chat.problem, said[0])
    elif completion is not None:
        chat = _Chat(chat.problem, fields.as_text(completion, "completion"))
    return _problem(row, row_id, task, chat)


def from_verl_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of verl: turns as prompt, and reward_model.ground_truth, which for task code holds the tests."""
    reward = fields.parse_json(row["reward_model"], "reward_model")
    if not isinstance(reward, Mapping) or not fields.has_value(reward, "ground_truth"):
        raise wrong("reward_model", reward, "must have the answer as ground_truth")
    truth = reward["ground_truth"]
    if isinstance(truth, str) and truth.startswith('["'):  # as in Skywork's rows
        truth = fields.parse_json(truth, "reward_model.ground_truth")
    prompt = row["prompt"]
    chat = _Chat(fields.text(row, "problem", ("prompt",)), None) if isinstance(prompt, str) else _chat(prompt, "prompt")
    solution = fields.optional_text(row, fields.SOLUTION) or chat.solution
    if task == "code":
        tests = tests_of_cases(fields.parse_json(truth, "reward_model.ground_truth"), "reward_model.ground_truth")
        return Problem(row_id, chat.problem, "", solution, {"tests": tests})
    answer = fields.as_text(truth, "reward_model.ground_truth")
    if not answer.strip():
        raise wrong("reward_model.ground_truth", truth, "must not be empty")
    return Problem(row_id, chat.problem, answer, solution)


def _problem(row: Row, row_id: str, task: str, chat: _Chat) -> Problem:
    solution = chat.solution
    answer = fields.optional_text(row, fields.ANSWER)
    if answer is None and solution:
        answer = final_answer(solution) or (solution.strip() if task == "exact" else None)
    if not answer:
        reason = "is empty" if not (solution or "").strip() else "has no \\boxed{} and no '####' to take it from"
        raise MissingFieldError("answer", f"answer: this field is required; the assistant's turn {reason}")
    return Problem(row_id, chat.problem, answer, solution or fields.optional_text(row, fields.SOLUTION))


def _chat(given: Any, name: str, system: str | None = None) -> _Chat:
    turns = _turns(given, name)
    roles = [role for role, _ in turns if role != "system"]
    if roles not in (["user"], ["user", "assistant"]):
        raise RowError(name, f"{name}: must be one user turn and one assistant turn, not {roles}"[:300])
    spoken = dict(turns)
    if not spoken["user"].strip():
        raise RowError(name, f"{name}: the user's turn must not be empty")
    before = [system or "", *(text for role, text in turns if role == "system")]
    problem = "\n\n".join([*(text.strip() for text in before if text.strip()), spoken["user"]])
    return _Chat(problem, spoken.get("assistant"))


def _turns(given: Any, name: str) -> list[tuple[str, str]]:
    """Return (role, text) of each turn."""
    turns = fields.parse_json(given, name) if isinstance(given, str) and given.lstrip().startswith("[") else given
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise wrong(name, turns, "must be a list of objects with role and content")
    if any(turn.get("tool_calls") or turn.get("function_call") for turn in turns):
        raise RowError(name, f"{name}: a turn calls a tool, which is not read; leave the row out, or write it as text")
    return [(_role(turn), _content(_first(turn, "content", "value"), name)) for turn in turns]


def _role(turn: Mapping[str, Any]) -> str:
    role = str(_first(turn, "role", "from"))
    return _ROLES.get(role.lower(), role)


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _content(content: Any, name: str) -> str:
    """Return a turn's text, which may be given in typed parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    if not isinstance(content, str):
        raise RowError(name, f"{name}: a turn's content must be text")
    return content
