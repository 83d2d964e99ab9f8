"""The client itself."""

from __future__ import annotations

from typing import Self, TypedDict, Unpack

from client._async.checkpoints import AsyncCheckpoints
from client._async.datasets import AsyncDatasets
from client._async.events import AsyncEvents
from client._async.jobs import AsyncJobs
from client._async.operations import AsyncKeys, AsyncModels
from client._async.run_records import (
    AsyncDiagnoses,
    AsyncEvaluations,
    AsyncMetrics,
    AsyncProbeSamples,
    AsyncTrajectories,
)
from client._async.transport import AsyncTransport
from client._async.webhooks import AsyncWebhooks
from client.call import Call
from client.settings import ClientSettings
from contract.views.health import Health, Readiness
from contract.views.places import PlaceView
from contract.views.retention import RetentionView


class Spot(TypedDict, total=False):
    """What to look at on a page; what is left out or None is as the service has it by default."""

    page: str
    """overview, diagnosis, trajectories, samples, checkpoints, events or spec."""
    side: str
    """Which text has the token: rollout or refined."""
    token: int | None
    """Number of the token, from 0."""
    text: str | None
    """Text to highlight."""


class RetentionDays(TypedDict, total=False):
    """Limits to try, in days from the end of a job; what is left out or None is as the service is configured."""

    events_days: int | None
    metrics_days: int | None
    trajectories_days: int | None
    checkpoints_days: int | None


class AsyncClient:
    """Client of one service, with one attribute for each noun of the API. Close it, or use it as a context manager.

    `Client` may be shared between threads; an `AsyncClient` belongs to one event loop. Calls raise
    `client.errors.TrdError`.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, settings: ClientSettings | None = None
    ) -> None:
        """Use `settings`, or `url` and `api_key`. What is missing comes from the environment (``TRD_URL``,
        ``TRD_API_KEY``), or is that of the service that ``trd up`` started here. Raises `SettingsError`."""
        settings = settings or ClientSettings.from_environment(url=url, api_key=api_key)
        self._transport = AsyncTransport(settings)
        self.jobs = AsyncJobs(self._transport)
        self.events = AsyncEvents(self._transport)
        self.metrics = AsyncMetrics(self._transport)
        self.trajectories = AsyncTrajectories(self._transport)
        self.evaluations = AsyncEvaluations(self._transport)
        self.diagnoses = AsyncDiagnoses(self._transport)
        self.probe_samples = AsyncProbeSamples(self._transport)
        self.checkpoints = AsyncCheckpoints(self._transport)
        self.datasets = AsyncDatasets(self._transport)
        self.models = AsyncModels(self._transport)
        self.keys = AsyncKeys(self._transport)
        self.webhooks = AsyncWebhooks(self._transport)

    @property
    def settings(self) -> ClientSettings:
        """The settings of this client."""
        return self._transport.settings

    async def health(self) -> Health:
        """Check that the process answers. Needs no key."""
        return await self._transport.send(Call("GET", "/healthz", Health))

    async def readiness(self) -> Readiness:
        """Return whether requests can be served, and the state of each part. Needs no key."""
        return await self._transport.send(Call("GET", "/readyz", Readiness, accepted_statuses=frozenset({503})))

    async def view(
        self, job_id: str, trajectory_id: str | None = None, *, wait_seconds: float = 8.0, **spot: Unpack[Spot]
    ) -> PlaceView:
        """Open a page of a job, or a trajectory, in an open tab of your dashboard; the response has the link too."""
        place = {"job_id": job_id, "trajectory_id": trajectory_id, "wait_seconds": wait_seconds, **spot}
        return await self._transport.send(Call("POST", "/view", PlaceView, json=place, is_repeatable=False))

    async def retention(self, **days: Unpack[RetentionDays]) -> RetentionView:
        """Return what the retention policy would remove now, of all owners' jobs; for admins. Removes nothing."""
        return await self._transport.send(Call("GET", "/retention", RetentionView, params=dict(days)))

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
