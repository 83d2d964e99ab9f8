"""What a job would ask with a dataset's first rows: every prompt as its model reads it, and what would be cut."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from contract.model_catalog import ModelRefusedError
from contract.tables import Dataset
from service.datasets.lines import first_rows
from service.datasets.parquet import first_parquet_rows
from service.datasets.problem_text import ProblemText, problem_text
from service.datasets.schemas import PreviewPrompt, PreviewQuery, PreviewRow
from service.errors import InvalidRequestError
from service.models.prompt_renderer import PROMPT_KINDS, PromptKind, PromptRenderer, renderer_of
from service.models.service import ModelShelf
from service.storage import Storage


def preview_rows(storage: Storage, models: ModelShelf, dataset: Dataset, settings: PreviewQuery) -> list[PreviewRow]:
    """The first `settings.limit` rows; raises `InvalidRequestError` where a model's prompts cannot be known here."""
    student = _renderer(models, "model", settings.model)
    teacher = student if settings.teacher is None else _renderer(models, "teacher", settings.teacher)
    return [
        _preview(number, problem_text(row), student, teacher, settings)
        for number, row in islice(_rows(storage, dataset), settings.limit)
    ]


def _rows(storage: Storage, dataset: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    with storage.open(dataset.storage_key) as stream:
        yield from first_parquet_rows(stream) if dataset.format == "parquet" else first_rows(stream)


def _renderer(models: ModelShelf, field: str, name: str) -> PromptRenderer:
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
        return renderer_of(folder, changed_at)
    except ModelRefusedError as error:
        raise InvalidRequestError(f"{field} = {name}: {error}", code="model_refused", param=field) from error


def _preview(
    number: int, text: ProblemText, student: PromptRenderer, teacher: PromptRenderer, settings: PreviewQuery
) -> PreviewRow:
    prompts = [_prompt(kind, text, student if kind == "solve" else teacher, settings) for kind in PROMPT_KINDS]
    solve = prompts[0]
    dropped = None
    if solve.num_tokens > settings.max_prompt_tokens:
        dropped = f"{solve.num_tokens} prompt tokens > sampling.max_prompt_tokens = {settings.max_prompt_tokens}"
    return PreviewRow(
        row=number,
        id=text.id,
        has_solution=text.solution is not None,
        is_exact=text.is_exact,
        dropped=dropped,
        prompts=prompts,
    )


def _prompt(kind: PromptKind, text: ProblemText, renderer: PromptRenderer, settings: PreviewQuery) -> PreviewPrompt:
    limit = settings.max_prompt_tokens if kind == "solve" else settings.refine_max_prompt_tokens
    templates = renderer.templates(settings.task)
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
