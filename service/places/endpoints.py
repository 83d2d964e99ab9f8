"""``/view``: point an open tab of the dashboard at a place."""

from __future__ import annotations

from fastapi import APIRouter

from contract.views.places import PlaceView
from service.auth import Reader
from service.bodies import JsonRoute
from service.context import Context
from service.errors import ERROR_RESPONSES, NotFoundError, PermissionDeniedError, raises
from service.places.schemas import WantedPlace

router = APIRouter(tags=["dashboard"], route_class=JsonRoute, responses=ERROR_RESPONSES)


@router.post("/view", summary="Open a page at a place in an open tab of the dashboard")
@raises(NotFoundError, PermissionDeniedError)
async def view(context: Context, caller: Reader, wanted: WantedPlace) -> PlaceView:
    """One of the caller's own open tabs goes to a job, a trajectory, a token or a text. The answer has the link, and
    says whether a tab has opened it."""
    return await context.places.view(caller.owner, wanted)
