"""``/audit``: for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from contract.views import Page
from contract.views.audit import AuditView
from service.audit.log import AuditQuery
from service.auth import Admin
from service.context import Context
from service.errors import ERROR_RESPONSES

router = APIRouter(prefix="/audit", tags=["operations"], responses=ERROR_RESPONSES)


@router.get("", summary="Who did what, newest first")
def list_entries(context: Context, caller: Admin, wanted: Annotated[AuditQuery, Query()]) -> Page[AuditView]:
    """The log has the changes and downloads of all owners. An entry is stored in the transaction of its change."""
    rows, has_more = context.audit.page(wanted)
    return Page(data=[AuditView.of(row) for row in rows], has_more=has_more)
