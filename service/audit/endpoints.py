"""``/audit``: for admins."""

from __future__ import annotations

from typing import Annotated

from contract.views.page import Page
from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from contract.views.audit import AuditAction, AuditView
from service.audit.log import AuditFilter
from service.auth import Admin
from service.context import Context
from service.query import Limit

router = APIRouter(prefix="/audit", tags=["operations"])


@router.get("", summary="Who did what, newest first")
def list_entries(
    context: Context,
    caller: Admin,
    owner: Annotated[str | None, Query(max_length=100, description="Only what this owner did.")] = None,
    action: Annotated[AuditAction | None, Query(description="Only this action.")] = None,
    target: Annotated[str | None, Query(max_length=200, description="Only what was done to this object.")] = None,
    since: Annotated[AwareDatetime | None, Query(description="Only from this time on, with a time zone.")] = None,
    after: str | None = None,
    limit: Limit = 20,
) -> Page[AuditView]:
    """Changes and downloads of all owners. An entry was stored in the transaction of the change itself."""
    rows, has_more = context.audit.page(AuditFilter(owner, action, target, since), after, limit)
    return Page(data=[AuditView.of(row) for row in rows], has_more=has_more)
