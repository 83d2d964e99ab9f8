"""``/retention``: for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from contract.retention import RecordKind, policy_of
from contract.views.retention import RetentionView
from service.auth import Admin
from service.context import Context
from service.errors import ERROR_RESPONSES
from service.query import DECIMAL, RequestModel
from service.retention.service import preview

WholeDays = Annotated[int, Field(ge=1, le=36_500), DECIMAL]

router = APIRouter(prefix="/retention", tags=["operations"], responses=ERROR_RESPONSES)


class OtherDays(RequestModel):
    """Limits to try instead of those of the settings."""

    events_days: WholeDays | None = None
    """Days instead of those of TRD_RETAIN_EVENTS_DAYS."""
    metrics_days: WholeDays | None = None
    """Days instead of those of TRD_RETAIN_METRICS_DAYS."""
    trajectories_days: WholeDays | None = None
    """Days instead of those of TRD_RETAIN_TRAJECTORIES_DAYS."""
    checkpoints_days: WholeDays | None = None
    """Days instead of those of TRD_RETAIN_CHECKPOINTS_DAYS."""


@router.get("", summary="What the retention policy would remove now")
def preview_retention(context: Context, caller: Admin, other: Annotated[OtherDays, Query()]) -> RetentionView:
    """The preview goes by the settings of this process, or by the limits in the query. Nothing is removed: the workers
    apply their own settings, which should be the same."""
    policy = policy_of(context.settings)
    limits = {kind: getattr(other, f"{kind}_days") or policy.get(kind) for kind in RecordKind}
    return RetentionView(kinds=[preview(context.database, kind, days) for kind, days in limits.items()])
