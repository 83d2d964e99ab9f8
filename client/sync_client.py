"""The client for ordinary programs."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from client.checkpoints import Checkpoints
from client.datasets import Datasets
from client.events import Events
from client.jobs import Jobs
from client.operations import HEALTH, READINESS, Keys, Models
from client.probe_samples import ProbeSamples
from client.run_records import Diagnoses, Evaluations, Metrics, Trajectories
from client.settings import ClientSettings
from client.transport import Transport
from contract.views.health import Health, Readiness


class Client:
    """One service, by a room for each of its nouns. Close it, or use it as a context manager.

    Safe to share between threads. Calls raise `client.errors.TrdError`.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, settings: ClientSettings | None = None
    ) -> None:
        """Without `settings`: `url` and `api_key`, or the environment's (``TRD_URL``, ``TRD_API_KEY``), or those of
        the service that ``trd up`` started here. Raises `SettingsError`."""
        settings = settings or ClientSettings.from_environment(url=url, api_key=api_key)
        self._transport = Transport(settings)
        self.jobs = Jobs(self._transport)
        self.events = Events(self._transport)
        self.metrics = Metrics(self._transport)
        self.trajectories = Trajectories(self._transport)
        self.evaluations = Evaluations(self._transport)
        self.diagnoses = Diagnoses(self._transport)
        self.probe_samples = ProbeSamples(self._transport)
        self.checkpoints = Checkpoints(self._transport)
        self.datasets = Datasets(self._transport)
        self.models = Models(self._transport)
        self.keys = Keys(self._transport)

    @property
    def settings(self) -> ClientSettings:
        """What this client was made with."""
        return self._transport.settings

    def health(self) -> Health:
        """Does the process answer? Needs no key."""
        return self._transport.send(HEALTH)

    def readiness(self) -> Readiness:
        """Can requests be served, and if not, why? Needs no key."""
        return self._transport.send(READINESS)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()
