"""``/v1/models``."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.orm import Session

from contract.views.page import Page
from service.auth import Reader
from service.checkpoints import repository as checkpoints
from service.context import Context
from service.errors import NotFoundError, raises
from service.jobs import repository as jobs
from service.openai_compat.models.names import model_name, parse_model_name
from service.openai_compat.models.schemas import ModelObject, shelved_model_object, trained_model_object
from service.openai_compat.routes import OpenAIRoute

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=OpenAIRoute)


@router.get("", summary="List the models that a job may name")
def list_openai_models(context: Context, caller: Reader) -> Page[ModelObject]:
    """The operator's allow-list, whole. What jobs have made is found by its name, ``job.fine_tuned_model``."""
    return Page(data=[shelved_model_object(model) for model in context.models.all()], has_more=False)


@router.get("/{name:path}", summary="One model, also one that a job has made")
@raises(NotFoundError)
def show_openai_model(context: Context, caller: Reader, name: str) -> ModelObject:
    """A trained one comes with the addresses of its files."""
    model = context.models.find(name)
    if model is not None:
        return shelved_model_object(model)
    with context.database.read() as session:
        trained = _find_trained(session, caller.owner, name)
    if trained is None:
        there = ", ".join(context.models.names())
        raise NotFoundError(
            f"there is no model {name!r}; there are: {there}; and what your jobs have made, by fine_tuned_model",
            code="model_not_found",
            param="name",
        )
    return trained


def _find_trained(session: Session, owner: str, name: str) -> ModelObject | None:
    reference = parse_model_name(name)
    job = jobs.find(session, owner, reference.job_id) if reference is not None else None
    if reference is None or job is None or name != model_name(job, reference.step):
        return None
    if reference.step is None:
        checkpoint = checkpoints.newest(session, job.id)
    else:
        checkpoint = checkpoints.find(session, job.id, reference.step)
    if checkpoint is None:
        return None
    return trained_model_object(name, job, checkpoint, checkpoints.files(session, checkpoint.id))
