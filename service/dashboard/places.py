"""What every open tab asks for: a place that a script or another tab wants it to open."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from service.auth import Reader
from service.context import Context

router = APIRouter(prefix="/ui/view", include_in_schema=False)


class Waiting(BaseModel):
    """Whether a place waits to be opened."""

    is_waiting: bool


class Target(BaseModel):
    """Where the tab goes."""

    path: str | None
    """A path of the dashboard; null if another tab was faster."""


@router.get("")
def waiting(context: Context, caller: Reader) -> Waiting:
    """Return whether the tab should take a place; each tab asks every few seconds."""
    return Waiting(is_waiting=context.places.is_waiting(caller.owner))


@router.post("/take")
def take(context: Context, caller: Reader) -> Target:
    """Take the place: it is this tab's to open."""
    return Target(path=context.places.take(caller.owner))
