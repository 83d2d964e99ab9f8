"""``/models``: what a job may name."""

from __future__ import annotations

from fastapi import APIRouter

from contract.views import Page
from contract.views.models import ModelView
from service.auth import Reader
from service.context import Context
from service.errors import ERROR_RESPONSES, NotFoundError, raises
from service.models.service import model_view

router = APIRouter(prefix="/models", tags=["models"], responses=ERROR_RESPONSES)


@router.get("", summary="List the models that a job may name")
def list_models(context: Context, caller: Reader) -> Page[ModelView]:
    """The answer is the operator's whole allow-list: it has no pages."""
    return Page(data=[model_view(model) for model in context.models.all()], has_more=False)


@router.get("/{name:path}", summary="One model")
@raises(NotFoundError)
def get_model(context: Context, caller: Reader, name: str) -> ModelView:
    """The model is found by the name that a spec gives."""
    model = context.models.find(name)
    if model is None:
        raise NotFoundError(f"there is no model {name!r}; there are: {', '.join(context.models.names())}")
    return model_view(model)
