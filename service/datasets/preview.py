"""What a job would ask with a dataset's first rows: every prompt as its model reads it, and what would be cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from contract.job_spec import JobSpec, Mode
from contract.model_catalog import ModelRefusedError
from contract.storage import Storage
from contract.tables import Dataset
from contract.views.datasets import PreviewPrompt, PreviewRow
from service.datasets.lines import first_rows
from service.datasets.parquet import first_parquet_rows
from service.datasets.problem_text import ProblemText, problem_text
from service.datasets.schemas import PreviewQuery
from service.errors import InvalidRequestError
from service.models.budgets import contexts, fit_budgets
from service.models.prompt_renderer import PROMPT_KINDS, PromptKind, PromptRenderer, renderer_of
from service.models.service import ModelShelf


def preview_rows(storage: Storage, models: ModelShelf, dataset: Dataset, settings: PreviewQuery) -> list[PreviewRow]:
    """The first `settings.limit` rows; raises `InvalidRequestError` where a model's prompts cannot be known here."""
    student = _model(models, "model", settings.model)
    teacher = None if settings.teacher is None else _model(models, "teacher", settings.teacher)
    prompted = _Prompted(
        settings.task, student.renderer, (teacher or student).renderer, *_limits(settings, student, teacher)
    )
    return [
        _preview(number, problem_text(row), prompted) for number, row in islice(_rows(storage, dataset), settings.limit)
    ]


def _rows(storage: Storage, dataset: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    with storage.open(dataset.storage_key) as stream:
        yield from first_parquet_rows(stream) if dataset.format == "parquet" else first_rows(stream)


@dataclass(frozen=True)
class _Model:
    renderer: PromptRenderer
    context_tokens: int | None


@dataclass(frozen=True)
class _Prompted:
    """By whom, and within which budgets."""

    task: str
    student: PromptRenderer
    teacher: PromptRenderer
    max_prompt_tokens: int
    refine_max_prompt_tokens: int


def _limits(settings: PreviewQuery, student: _Model, teacher: _Model | None) -> tuple[int, int]:
    """The budgets of both kinds of prompts: as asked for, else a TRD job's, lowered to the models' contexts."""
    spec = JobSpec(mode=Mode.TRD, student="student", teacher="teacher" if teacher else None, dataset="ds_0")
    fitted, _ = fit_budgets(
        spec, contexts(spec, student.context_tokens, teacher.context_tokens if teacher is not None else None)
    )
    default, refine_default = fitted.sampling.max_prompt_tokens, fitted.refine.max_prompt_tokens
    assert refine_default is not None, "a fitted spec has every budget"
    return settings.max_prompt_tokens or default, settings.refine_max_prompt_tokens or refine_default


def _model(models: ModelShelf, field: str, name: str) -> _Model:
    shelved = models.find(name)
    if shelved is None:
        raise InvalidRequestError(
            f"{field} = {name}: there is no such model here; there are: {', '.join(models.names())}",
            code="model_not_found",
            param=field,
        )
    if shelved.facts is None:
        reason = shelved.refusal or "it lies on a hub, and only workers fetch it"
        raise InvalidRequestError(f"{field} = {name}: {reason}", code="model_refused", param=field)
    folder = Path(shelved.entry.source)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    changed_at = tuple((folder / n).stat().st_mtime_ns if (folder / n).exists() else None for n in names)
    try:
        return _Model(renderer_of(folder, changed_at), shelved.facts.context_tokens)
    except ModelRefusedError as error:
        raise InvalidRequestError(f"{field} = {name}: {error}", code="model_refused", param=field) from error


def _preview(number: int, text: ProblemText, prompted: _Prompted) -> PreviewRow:
    prompts = [_prompt(kind, text, prompted) for kind in PROMPT_KINDS]
    solve = prompts[0]
    dropped = None
    if solve.num_tokens > prompted.max_prompt_tokens:
        dropped = f"{solve.num_tokens} prompt tokens > sampling.max_prompt_tokens = {prompted.max_prompt_tokens}"
    return PreviewRow(
        row=number,
        id=text.id,
        has_solution=text.solution is not None,
        is_exact=text.is_exact,
        dropped=dropped,
        prompts=prompts,
    )


def _prompt(kind: PromptKind, text: ProblemText, prompted: _Prompted) -> PreviewPrompt:
    renderer = prompted.student if kind == "solve" else prompted.teacher
    limit = prompted.max_prompt_tokens if kind == "solve" else prompted.refine_max_prompt_tokens
    templates = renderer.templates(prompted.task)
    texts = {"problem": text.problem, "solution": text.solution or "", "attempt": ""}
    fitted = renderer.fitted(templates, kind, texts, limit)
    whole = renderer.num_tokens(templates, kind, texts)
    return PreviewPrompt(
        kind=kind,
        text=fitted.text,
        num_tokens=len(fitted.token_ids),
        token_ids=fitted.token_ids,
        num_cut_solution_tokens=fitted.num_cut_solution_tokens,
        attempt_tokens_that_fit=max(0, limit - whole) if "{attempt}" in templates[kind] else None,
    )
