"""``/keys``: for admins."""

from __future__ import annotations

from fastapi import APIRouter

from contract.views import Page
from contract.views.keys import CreatedKey, KeyView
from service.auth import Admin
from service.bodies import JsonRoute
from service.context import Context
from service.errors import NotFoundError, raises
from service.keys.schemas import NewKey
from service.query import Limit

router = APIRouter(prefix="/keys", tags=["keys"], route_class=JsonRoute)


@router.post("", status_code=201, summary="Make a key, shown this once")
def create(context: Context, caller: Admin, wanted: NewKey) -> CreatedKey:
    """Only this answer contains the key: the service stores its digest."""
    row, key = context.keys.create(wanted.owner or caller.owner, wanted.name, wanted.scopes)
    return CreatedKey.of(row, key=key)


@router.get("", summary="List keys, newest first")
def list_keys(context: Context, caller: Admin, after: str | None = None, limit: Limit = 20) -> Page[KeyView]:
    """Keys of all owners, the revoked ones too."""
    rows, has_more = context.keys.page(after, limit)
    return Page(data=[KeyView.of(row) for row in rows], has_more=has_more)


@router.delete("/{key_id}", summary="Revoke a key")
@raises(NotFoundError)
def revoke(context: Context, caller: Admin, key_id: str) -> KeyView:
    """From now on the key is refused; by other processes of the service within seconds."""
    return KeyView.of(context.keys.revoke(key_id))
