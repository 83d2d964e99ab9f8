"""The prompts that a job would make of a dataset's first rows, as their models read them, and what would be cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from contract.job_spec import JobSpec, Mode
from contract.storage import Storage
from contract.tables import Dataset
from contract.views.datasets import PreviewPrompt, PreviewRow
from service.datasets.rows import first_problems
from service.datasets.schemas import PreviewQuery
from service.errors import InvalidRequestError
from service.models.budgets import contexts, fit_budgets
from service.models.service import ModelShelf
from trd_data.chat_template import FolderTokenizer
from trd_data.errors import PromptError
from trd_data.problems import Problem
from trd_data.prompts import BuiltPrompt, PromptBuilder
from trd_data.templates import BY_TASK, choose_templates

PromptKind = Literal["solve", "privileged", "refine", "privileged_refine"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_NO_LIMIT = 2**62


def preview_rows(storage: Storage, models: ModelShelf, dataset: Dataset, settings: PreviewQuery) -> list[PreviewRow]:
    """Return the first `settings.limit` rows; raises `InvalidRequestError` if a model's prompts cannot be known here,
    or if the task cannot read a row."""
    student = _model(models, "model", settings.model, settings.task)
    teacher = student if settings.teacher is None else _model(models, "teacher", settings.teacher, settings.task)
    solve_limit, refine_limit = _limits(settings, student, None if settings.teacher is None else teacher)
    with storage.open(dataset.storage_key) as stream:
        problems = first_problems(stream, dataset, settings.task, settings.limit)
    rows = []
    for number, problem in problems:
        token_ids = student.prompts.solve(problem)
        solve = BuiltPrompt(token_ids, message=student.prompts.solve_message(problem))
        shown = [_shown("solve", solve, student.prompts, None)]
        shown += [_teacher_prompt(kind, problem, teacher.prompts, refine_limit) for kind in get_args(PromptKind)[1:]]
        dropped = None
        if len(token_ids) > solve_limit:
            dropped = f"{len(token_ids)} prompt tokens > sampling.max_prompt_tokens = {solve_limit}"
        row = PreviewRow(
            row=number,
            id=problem.id,
            has_solution=problem.solution is not None,
            is_exact=True,
            dropped=dropped,
            prompts=shown,
        )
        rows.append(row)
    return rows


@dataclass(frozen=True)
class _Model:
    prompts: PromptBuilder
    context_tokens: int | None


def _limits(settings: PreviewQuery, student: _Model, teacher: _Model | None) -> tuple[int, int]:
    """Return the token budgets of solving and refining prompts: the query's, else a TRD job's, lowered to the models'
    contexts."""
    spec = JobSpec(mode=Mode.TRD, student="student", teacher="teacher" if teacher else None, dataset="ds_0")
    fitted, _ = fit_budgets(
        spec, contexts(spec, student.context_tokens, teacher.context_tokens if teacher is not None else None)
    )
    default, refine_default = fitted.sampling.max_prompt_tokens, fitted.refine.max_prompt_tokens
    assert refine_default is not None, "a fitted spec has every budget"
    return settings.max_prompt_tokens or default, settings.refine_max_prompt_tokens or refine_default


def _model(models: ModelShelf, field: str, name: str, task: str) -> _Model:
    shelved = models.find(name)
    if shelved is None:
        raise InvalidRequestError(
            f"{field} = {name}: there is no such model here; there are: {', '.join(models.names())}",
            code="model_not_found",
            param=field,
        )
    if shelved.facts is None:
        reason = shelved.refusal or "it is on a hub, and only workers fetch it"
        raise InvalidRequestError(f"{field} = {name}: {reason}", code="model_refused", param=field)
    folder = Path(shelved.entry.source)
    changed_at = tuple((folder / n).stat().st_mtime_ns if (folder / n).exists() else None for n in _TOKENIZER_FILES)
    try:
        templates = choose_templates(BY_TASK[task], str(folder))
        return _Model(PromptBuilder(_tokenizer(folder, changed_at), templates), shelved.facts.context_tokens)
    except PromptError as error:
        raise InvalidRequestError(f"{field} = {name}: {error}", code="model_refused", param=field) from error


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, _changed_at: tuple[int | None, ...]) -> FolderTokenizer:
    """Return the tokenizer of a folder, read again when its files change."""
    return FolderTokenizer(folder)


def _teacher_prompt(kind: PromptKind, problem: Problem, prompts: PromptBuilder, limit: int) -> PreviewPrompt:
    if kind == "privileged":
        return _shown(kind, prompts.privileged(problem, max_tokens=limit), prompts, None)
    privileged = kind == "privileged_refine"
    built = prompts.refine(problem, "", privileged=privileged, max_tokens=limit)
    whole = prompts.refine(problem, "", privileged=privileged, max_tokens=_NO_LIMIT)
    return _shown(kind, built, prompts, max(0, limit - len(whole.token_ids)))


def _shown(kind: PromptKind, built: BuiltPrompt, prompts: PromptBuilder, attempt_tokens: int | None) -> PreviewPrompt:
    return PreviewPrompt(
        kind=kind,
        text=prompts.chat_text(built.message),
        num_tokens=len(built.token_ids),
        token_ids=list(built.token_ids),
        num_cut_solution_tokens=built.num_cut_solution_tokens,
        attempt_tokens_that_fit=attempt_tokens,
    )
