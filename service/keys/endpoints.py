"""``/keys``: for admins."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter

from contract.views.keys import CreatedKey, KeyView
from contract.views.page import Page
from service.auth import Admin
from service.bodies import JsonRoute
from service.context import Context
from service.errors import NotFoundError, raises
from service.keys import repository
from service.keys.schemas import NewKey
from service.keys.service import create_key
from service.query import Limit, cut

router = APIRouter(prefix="/keys", tags=["keys"], route_class=JsonRoute)


@router.post("", status_code=201, summary="Make a key, shown this once")
def create(context: Context, caller: Admin, wanted: NewKey) -> CreatedKey:
    """Only this answer contains the key: the service stores its digest."""
    with context.database.write() as session:
        row, key = create_key(
            session, context.keys, owner=wanted.owner or caller.owner, name=wanted.name, scopes=wanted.scopes
        )
    return CreatedKey.of(row, key=key)


@router.get("", summary="List keys, newest first")
def list_keys(context: Context, caller: Admin, after: str | None = None, limit: Limit = 20) -> Page[KeyView]:
    """Keys of all owners, the revoked ones too."""
    with context.database.read() as session:
        rows, has_more = cut(repository.page(session, after, limit), limit)
    return Page(data=[KeyView.of(row) for row in rows], has_more=has_more)


@router.delete("/{key_id}", summary="Revoke a key")
@raises(NotFoundError)
def revoke(context: Context, caller: Admin, key_id: str) -> KeyView:
    """From now on the key is refused; by other processes of the service within seconds."""
    with context.database.write() as session:
        row = repository.revoke(session, key_id, datetime.now(UTC))
    if row is None:
        raise NotFoundError(f"there is no key {key_id}")
    context.keys.forget()
    return KeyView.of(row)
