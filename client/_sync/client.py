# Generated from client/_async/client.py by `python client/generate.py`. Do not edit.

"""The client itself."""

from __future__ import annotations

from typing import Self, TypedDict, Unpack

from client._sync.checkpoints import Checkpoints
from client._sync.datasets import Datasets
from client._sync.events import Events
from client._sync.jobs import Jobs
from client._sync.operations import Keys, Models
from client._sync.run_records import (
    Diagnoses,
    Evaluations,
    Metrics,
    ProbeSamples,
    Trajectories,
)
from client._sync.transport import Transport
from client._sync.webhooks import Webhooks
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


class Client:
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
        self.webhooks = Webhooks(self._transport)

    @property
    def settings(self) -> ClientSettings:
        """The settings of this client."""
        return self._transport.settings

    def health(self) -> Health:
        """Check that the process answers. Needs no key."""
        return self._transport.send(Call("GET", "/healthz", Health))

    def readiness(self) -> Readiness:
        """Return whether requests can be served, and the state of each part. Needs no key."""
        return self._transport.send(Call("GET", "/readyz", Readiness, accepted_statuses=frozenset({503})))

    def view(
        self, job_id: str, trajectory_id: str | None = None, *, wait_seconds: float = 8.0, **spot: Unpack[Spot]
    ) -> PlaceView:
        """Open a page of a job, or a trajectory, in an open tab of your dashboard; the response has the link too."""
        place = {"job_id": job_id, "trajectory_id": trajectory_id, "wait_seconds": wait_seconds, **spot}
        return self._transport.send(Call("POST", "/view", PlaceView, json=place, is_repeatable=False))

    def retention(self, **days: Unpack[RetentionDays]) -> RetentionView:
        """Return what the retention policy would remove now, of all owners' jobs; for admins. Removes nothing."""
        return self._transport.send(Call("GET", "/retention", RetentionView, params=dict(days)))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
