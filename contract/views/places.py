"""A place of the dashboard."""

from __future__ import annotations

from typing import Literal

from contract.views import View


class PlaceView(View):
    """A page of the dashboard, and whether a tab has opened it."""

    object: Literal["place"] = "place"
    path: str
    """Path on this server; as a link, it leads to the same place."""
    is_opened: bool
    """Whether an open tab of the caller's dashboard has gone there."""
    message: str
    """What happened; if no tab opened it, what to do."""
