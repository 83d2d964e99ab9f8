"""The client for asyncio."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from client.checkpoints import AsyncCheckpoints
from client.datasets import AsyncDatasets
from client.events import AsyncEvents
from client.jobs import AsyncJobs
from client.operations import HEALTH, READINESS, AsyncKeys, AsyncModels
from client.probe_samples import AsyncProbeSamples
from client.run_records import AsyncDiagnoses, AsyncEvaluations, AsyncMetrics, AsyncTrajectories
from client.settings import ClientSettings
from client.transport import AsyncTransport
from contract.views.health import Health, Readiness


class AsyncClient:
    """One service, by a room for each of its nouns. Close it, or use it as a context manager.

    Belongs to one event loop. Calls raise `client.errors.TrdError`.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, settings: ClientSettings | None = None
    ) -> None:
        """Without `settings`: `url` and `api_key`, or the environment's (``TRD_URL``, ``TRD_API_KEY``), or those of
        the service that ``trd up`` started here. Raises `SettingsError`."""
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

    @property
    def settings(self) -> ClientSettings:
        """What this client was made with."""
        return self._transport.settings

    async def health(self) -> Health:
        """Does the process answer? Needs no key."""
        return await self._transport.send(HEALTH)

    async def readiness(self) -> Readiness:
        """Can requests be served, and if not, why? Needs no key."""
        return await self._transport.send(READINESS)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()
