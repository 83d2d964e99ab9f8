"""Renders the prompts of a file's first rows, as their models read them, within limits.

Called in a child process (`trd_data.child`): a tokenizer takes seconds for megabytes, and a chat template may loop.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import IO, Any

from trd_data.chat_template import FolderTokenizer
from trd_data.check import first_problems
from trd_data.errors import PromptError
from trd_data.problems import Problem
from trd_data.prompts import BuiltPrompt, PromptBuilder
from trd_data.templates import BY_TASK, PreviewRequest, choose_templates

MAX_TEXT = 2**15
"""Characters of a problem and of a solution; the rest is cut before anything is tokenised."""
MAX_SHOWN_TEXT = 2**15
"""Characters of a prompt that are shown."""
MAX_SHOWN_IDS = 2**12
"""Token ids of a prompt that are shown."""
_NO_LIMIT = 2**62


def preview_rows(stream: IO[bytes], request: PreviewRequest) -> list[dict[str, Any]]:
    """Return the fields of `contract.views.datasets.PreviewRow` for each of the first rows.

    Raises `DataFileError`, RowError for a row that the task cannot read, and `PromptError` that begins with "model" or
    "teacher".
    """
    student = _prompts("model", request.student, request.task)
    teacher = student if request.teacher is None else _prompts("teacher", request.teacher, request.task)
    problems = first_problems(stream, request.task, request.count, request.columns)
    return [_row(number, problem, student, teacher, request) for number, problem in problems]


def _prompts(field: str, folder: str, task: str) -> PromptBuilder:
    try:
        return PromptBuilder(FolderTokenizer(Path(folder)), choose_templates(BY_TASK[task], folder))
    except PromptError as error:
        raise PromptError(f"{field}: {error}") from error


def _row(
    number: int, problem: Problem, student: PromptBuilder, teacher: PromptBuilder, request: PreviewRequest
) -> dict[str, Any]:
    solution = problem.solution
    shown = dataclasses.replace(
        problem, problem=problem.problem[:MAX_TEXT], solution=solution[:MAX_TEXT] if solution is not None else None
    )
    try:
        token_ids = student.solve(shown)
        solve = BuiltPrompt(token_ids, message=student.solve_message(shown))
        prompts = [_shown("solve", solve, student, None)]
    except PromptError as error:
        raise PromptError(f"model: {error}") from error
    try:
        prompts += _teacher_prompts(shown, teacher, request.refine_limit)
    except PromptError as error:
        raise PromptError(f"{'teacher' if request.teacher else 'model'}: {error}") from error
    is_whole = (shown.problem, shown.solution) == (problem.problem, problem.solution)
    dropped = None
    if len(token_ids) > request.solve_limit:
        more = "" if is_whole else "more than "
        dropped = f"{more}{len(token_ids)} prompt tokens > sampling.max_prompt_tokens = {request.solve_limit}"
    return {
        "row": number,
        "id": problem.id,
        "has_solution": problem.solution is not None,
        "is_exact": is_whole,
        "dropped": dropped,
        "prompts": prompts,
    }


def _teacher_prompts(problem: Problem, prompts: PromptBuilder, limit: int) -> list[dict[str, Any]]:
    shown = [_shown("privileged", prompts.privileged(problem, max_tokens=limit), prompts, None)]
    for kind in ("refine", "privileged_refine"):
        privileged = kind == "privileged_refine"
        built = prompts.refine(problem, "", privileged=privileged, max_tokens=limit)
        whole = prompts.refine(problem, "", privileged=privileged, max_tokens=_NO_LIMIT)
        shown.append(_shown(kind, built, prompts, max(0, limit - len(whole.token_ids))))
    return shown


def _shown(kind: str, built: BuiltPrompt, prompts: PromptBuilder, attempt_tokens: int | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "text": prompts.chat_text(built.message)[:MAX_SHOWN_TEXT],
        "num_tokens": len(built.token_ids),
        "token_ids": list(built.token_ids[:MAX_SHOWN_IDS]),
        "num_cut_solution_tokens": built.num_cut_solution_tokens,
        "attempt_tokens_that_fit": attempt_tokens,
    }
