"""``/v1/models``."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter

from contract.views import Page
from service.auth import Reader
from service.checkpoints.service import LATEST
from service.context import Context
from service.errors import ERROR_RESPONSES, NotFoundError, raises
from service.openai_compat.models.schemas import (
    ModelObject,
    catalog_model_object,
    model_name,
    parse_model_name,
    trained_model_object,
)
from service.openai_compat.routes import OpenAIRoute

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=OpenAIRoute, responses=ERROR_RESPONSES)


@router.get("", summary="List the models that a job may name")
def list_openai_models(context: Context, caller: Reader) -> Page[ModelObject]:
    """The answer is the operator's whole allow-list. A job's result is found by its name, ``job.fine_tuned_model``."""
    return Page(data=[catalog_model_object(model) for model in context.models.all()], has_more=False)


@router.get("/{name:path}", summary="One model, also one that a job has made")
@raises(NotFoundError)
def show_openai_model(context: Context, caller: Reader, name: str) -> ModelObject:
    """A trained model comes with the addresses of its files."""
    model = context.models.find(name)
    if model is not None:
        return catalog_model_object(model)
    if (reference := parse_model_name(name)) is not None:
        job_id, step = reference
        with suppress(NotFoundError):  # of the job or its checkpoint; the answer below is the same for all names
            job = context.jobs.find(caller.owner, job_id)
            if name == model_name(job, step):
                found = context.checkpoints.with_files(caller.owner, job_id, LATEST if step is None else str(step))
                return trained_model_object(name, job, *found)
    there = ", ".join(context.models.names())
    raise NotFoundError(
        f"there is no model {name!r}; there are: {there}; and what your jobs have made, by fine_tuned_model",
        code="model_not_found",
        param="name",
    )
