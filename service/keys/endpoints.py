"""``/keys``: for admins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, Field, StrictInt

from contract.strict_model import WITHOUT_CONTROLS
from contract.views import Page
from contract.views.keys import CreatedKey, KeyScope, KeyView
from service.auth import Admin
from service.bodies import JsonRoute
from service.context import Context
from service.errors import ERROR_RESPONSES, NotFoundError, raises
from service.query import Limit, Moment, RequestModel

router = APIRouter(prefix="/keys", tags=["keys"], route_class=JsonRoute, responses=ERROR_RESPONSES)


def _in_the_future(value: datetime) -> datetime:
    if value <= datetime.now(UTC):
        raise ValueError("is in the past")
    return value


class NewKey(RequestModel):
    """What to make."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S"), WITHOUT_CONTROLS]
    """Name for people; not blank."""
    owner: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.@-]+$")] | None = None
    """Who sees what is made with the key; null takes the caller's own."""
    scopes: Annotated[list[KeyScope], Field(min_length=1)] = [KeyScope.SUBMIT]  # noqa: RUF012 - pydantic copies it
    """read: look; submit: also make and change; admin: also manage keys."""
    expires_at: Annotated[Moment, AfterValidator(_in_the_future)] | None = None
    """When the key stops to work; null: never."""


class Rotation(RequestModel):
    """How a key is replaced."""

    grace_seconds: Annotated[StrictInt, Field(ge=0, le=90 * 86_400)] = 86_400
    """How long the old key still works, so that programs can change to the new one."""


@router.post("", status_code=201, summary="Make a key, shown this once")
def create(context: Context, caller: Admin, wanted: NewKey) -> CreatedKey:
    """Only this answer contains the key: the service stores its digest."""
    row, key = context.keys.create(wanted.owner or caller.owner, wanted.name, wanted.scopes, wanted.expires_at)
    return CreatedKey.of(row, key=key)


@router.get("", summary="List keys, newest first")
def list_keys(context: Context, caller: Admin, after: str | None = None, limit: Limit = 20) -> Page[KeyView]:
    """The list has the keys of all owners, revoked ones too."""
    rows, has_more = context.keys.page(after, limit)
    return Page(data=[KeyView.of(row) for row in rows], has_more=has_more)


@router.post("/{key_id}/rotate", status_code=201, summary="Replace a key, which stays valid for a while")
@raises(NotFoundError)
def rotate(context: Context, caller: Admin, key_id: str, wanted: Rotation) -> CreatedKey:
    """The new key has the old one's owner, name and scopes, and is shown once. Sessions of the dashboard end with the
    old key."""
    row, key = context.keys.rotate(key_id, timedelta(seconds=wanted.grace_seconds))
    return CreatedKey.of(row, key=key)


@router.delete("/{key_id}", summary="Revoke a key")
@raises(NotFoundError)
def revoke(context: Context, caller: Admin, key_id: str) -> KeyView:
    """From now on the key is refused; by other processes of the service within seconds."""
    return KeyView.of(context.keys.revoke(key_id))
