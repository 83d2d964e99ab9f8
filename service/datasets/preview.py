"""What the child that renders a preview has to know: the models' folders and a job's budgets for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contract.job_spec import JobSpec, Mode
from contract.tables import Dataset
from service.datasets.rows import data_errors
from service.datasets.schemas import PreviewQuery
from service.errors import InvalidRequestError, PayloadTooLargeError
from service.models.budgets import contexts, fit_budgets
from service.models.service import ModelCatalog
from trd_data.errors import PromptError
from trd_data.templates import PreviewRequest


def preview_request(models: ModelCatalog, dataset: Dataset, query: PreviewQuery) -> dict[str, Any]:
    """Return the child's request; raise `InvalidRequestError` if a model's prompts cannot be known here."""
    student, context = _model(models, "model", query.model)
    teacher, teacher_context = (None, None) if query.teacher is None else _model(models, "teacher", query.teacher)
    # The query's budgets, else those of a TRD job, lowered to the models' contexts.
    spec = JobSpec(mode=Mode.TRD, student="student", teacher="teacher" if teacher else None, dataset="ds_0")
    fitted, _ = fit_budgets(spec, contexts(spec, context, teacher_context))
    default, refine_default = fitted.sampling.max_prompt_tokens, fitted.refine.max_prompt_tokens
    assert refine_default is not None, "a fitted spec has every budget"
    request = PreviewRequest(
        student=student,
        teacher=teacher,
        task=query.task,
        count=query.limit,
        solve_limit=query.max_prompt_tokens or default,
        refine_limit=query.refine_max_prompt_tokens or refine_default,
        columns=dataset.columns,
    )
    return {"preview": asdict(request)}


def _model(models: ModelCatalog, field: str, name: str) -> tuple[str, int | None]:
    """Return a model's folder and its number of context tokens."""
    found = models.find(name)
    if found is None:
        raise InvalidRequestError(
            f"{field} = {name}: there is no such model here; there are: {', '.join(models.names())}",
            code="model_not_found",
            param=field,
        )
    if found.facts is None:
        reason = found.refusal or "it is on a hub, and only workers fetch it"
        raise InvalidRequestError(f"{field} = {name}: {reason}", code="model_refused", param=field)
    return str(Path(found.entry.source).resolve()), found.facts.context_tokens


@contextmanager
def preview_errors() -> Iterator[None]:
    """Raise what the child reports as a refusal."""
    try:
        with data_errors("task"):
            yield
    except PromptError as error:
        field = str(error).partition(":")[0]
        raise InvalidRequestError(str(error), code="model_refused", param=field) from error
    except PayloadTooLargeError as error:
        raise InvalidRequestError(
            "the preview takes too long or too much memory; ask for fewer rows (limit), and look for a loop in the "
            "model's chat template",
            code="preview_too_large",
        ) from error
