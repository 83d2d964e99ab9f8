"""Request body of ``/view``, and the path of the page that it means."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import Field

from contract.strict_model import WITHOUT_CONTROLS
from service.query import RequestModel


class WantedPlace(RequestModel):
    """A page of a job, and what to look at on it."""

    job_id: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^\w+$")]
    """One of the caller's jobs."""
    page: Literal["overview", "diagnosis", "trajectories", "samples", "checkpoints", "events", "spec"] = "overview"
    """Which of the job's pages; a trajectory has its own."""
    trajectory_id: Annotated[str, Field(pattern=r"^[0-9]{1,9}:[0-9]{1,9}$")] | None = None
    """Round and position, ``0:3``; both count from 0."""
    side: Literal["rollout", "refined"] = "rollout"
    """Which text of the trajectory has the token: y_o or y_r."""
    token: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Token of the trajectory to select, from 0."""
    text: Annotated[str, Field(min_length=1, max_length=300), WITHOUT_CONTROLS] | None = None
    """Text on the page to highlight."""
    wait_seconds: Annotated[float, Field(ge=0, le=20)] = 8.0
    """How long to wait for a tab to open the place; 0 offers it to none and returns the link."""

    @property
    def path(self) -> str:
        """The page's path with its fragment."""
        if self.trajectory_id is not None:
            path = f"/ui/jobs/{self.job_id}/trajectories/{self.trajectory_id}"
        else:
            path = f"/ui/jobs/{self.job_id}" + ("" if self.page == "overview" else f"/{self.page}")
        spot: dict[str, str] = {}
        if self.token is not None:
            spot["token"] = f"{self.side}:{self.token}"
        if self.text is not None:
            spot["text"] = self.text
        return f"{path}#{urlencode(spot, safe=':')}" if spot else path
