"""Points an owner's open tabs at places of the dashboard.

A place is a row that its caller offers for a few seconds, and that one tab takes by deleting it: so it works with any
number of service processes, and the caller learns whether somebody sees it. The service builds every path.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from starlette.concurrency import run_in_threadpool

from contract.database import Database
from contract.tables import OfferedPlace
from contract.views.places import PlaceView
from service.errors import InvalidRequestError
from service.jobs.service import get_job
from service.places import repository
from service.places.schemas import WantedPlace
from service.runs.service import RunService, trajectory_key

POLL_SECONDS = 0.25
"""Interval at which a caller looks whether a tab has taken the place."""
LIFETIME = timedelta(minutes=1)
"""Longer than any caller waits."""


class PlaceService:
    """The use cases of places."""

    def __init__(self, database: Database, runs: RunService) -> None:
        self._database = database
        self._runs = runs

    async def view(self, owner: str, wanted: WantedPlace) -> PlaceView:
        """Offer the place to the owner's tabs, and wait until one has taken it; raise `NotFoundError` and
        `InvalidRequestError`."""
        await run_in_threadpool(self._require_there, owner, wanted)
        path = wanted.path
        if wanted.wait_seconds == 0:
            return PlaceView(path=path, is_opened=False, message="Open the path on this server.")
        is_opened = await self._is_taken(owner, path, wanted.wait_seconds)
        failure = f"No tab of {owner}'s dashboard opened it within {wanted.wait_seconds:g} s: open the path yourself."
        return PlaceView(path=path, is_opened=is_opened, message="A tab has opened it." if is_opened else failure)

    def is_waiting(self, owner: str) -> bool:
        """Return whether a place waits for a tab of the owner."""
        with self._database.read() as session:
            return repository.is_waiting(session, owner, datetime.now(UTC))

    def take(self, owner: str) -> str | None:
        """Return the path that the owner's tab shall open, and offer it no longer; None if nothing waits."""
        with self._database.write() as session:
            return repository.take(session, owner, datetime.now(UTC))

    def _require_there(self, owner: str, wanted: WantedPlace) -> None:
        with self._database.read() as session:
            get_job(session, owner, wanted.job_id)
        if wanted.trajectory_id is None:
            if wanted.token is not None:
                raise InvalidRequestError("token needs trajectory_id: only a trajectory has tokens", param="token")
            return
        row = self._runs.trajectory(owner, wanted.job_id, trajectory_key(wanted.trajectory_id))
        num_tokens = row.rollout_tokens if wanted.side == "rollout" else row.refined_tokens
        if num_tokens is None:
            raise InvalidRequestError(f"{wanted.trajectory_id} has no refinement; set side to rollout", param="side")
        if wanted.token is not None and wanted.token >= num_tokens:
            last = f"its {wanted.side} has tokens 0 to {num_tokens - 1}"
            raise InvalidRequestError(f"token = {wanted.token}: {wanted.trajectory_id}: {last}", param="token")
        if wanted.text is not None and wanted.text not in row.rollout and wanted.text not in (row.refined or ""):
            reason = "neither the rollout nor the refinement contains it; upper and lower case differ"
            raise InvalidRequestError(f"text = {wanted.text}: {reason}", param="text")

    async def _is_taken(self, owner: str, path: str, wait_seconds: float) -> bool:
        deadline = time.monotonic() + wait_seconds
        place_id = await run_in_threadpool(self._offer, owner, path)
        while time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            if not await run_in_threadpool(self._is_offered, place_id):
                return True
        return not await run_in_threadpool(self._withdraw, place_id)

    def _offer(self, owner: str, path: str) -> int:
        now = datetime.now(UTC)
        row = OfferedPlace(owner=owner, path=path, expires_at=now + LIFETIME)
        with self._database.write() as session:
            repository.delete_expired(session, now)
            session.add(row)
        return row.id

    def _is_offered(self, place_id: int) -> bool:
        with self._database.read() as session:
            return repository.is_offered(session, place_id)

    def _withdraw(self, place_id: int) -> bool:
        with self._database.write() as session:
            return repository.withdraw(session, place_id)
