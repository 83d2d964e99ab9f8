"""What a run wrote down: ``/jobs/{id}/metrics``, ``…/trajectories``, ``…/evaluations`` and ``…/diagnosis``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from client.call import Call, part
from client.paging import Cursor, page_size, walk, walk_async
from client.transport import AsyncTransport, Transport
from contract.views.diagnosis import DiagnosisView
from contract.views.evaluations import EvaluationView
from contract.views.metrics import MetricSeries
from contract.views.page import Page
from contract.views.trajectories import OutcomeCount, TrajectoryView


def _metrics(
    job_id: str, names: Sequence[str], from_step: int | None, to_step: int | None, resolution: int | None
) -> Call[Page[MetricSeries]]:
    params = {
        "names": ",".join(names) or None,
        "from_step": from_step,
        "to_step": to_step,
        "resolution": resolution,
    }
    return Call("GET", f"/jobs/{part(job_id)}/metrics", Page[MetricSeries], params=params)


def _trajectories(
    job_id: str, outcome: Sequence[str], round: int | None, after: Cursor, limit: int
) -> Call[Page[TrajectoryView]]:
    params = {"outcome": [str(name) for name in outcome], "round": round, "after": after, "limit": limit}
    return Call("GET", f"/jobs/{part(job_id)}/trajectories", Page[TrajectoryView], params=params)


def _trajectory(job_id: str, trajectory_id: str) -> Call[TrajectoryView]:
    return Call("GET", f"/jobs/{part(job_id)}/trajectories/{part(trajectory_id)}", TrajectoryView)


def _outcomes(job_id: str) -> Call[Page[OutcomeCount]]:
    return Call("GET", f"/jobs/{part(job_id)}/trajectories/outcomes", Page[OutcomeCount])


def _diagnoses(job_id: str, after: Cursor, limit: int) -> Call[Page[DiagnosisView]]:
    params = {"after": after, "limit": limit}
    return Call("GET", f"/jobs/{part(job_id)}/diagnosis", Page[DiagnosisView], params=params)


def _evaluations(job_id: str) -> Call[Page[EvaluationView]]:
    return Call("GET", f"/jobs/{part(job_id)}/evaluations", Page[EvaluationView])


class Metrics:
    """Curves over the steps."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self,
        job_id: str,
        names: Sequence[str] = (),
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        resolution: int | None = None,
    ) -> Sequence[MetricSeries]:
        """The metrics of these names, or all; about `resolution` points each, peaks kept."""
        return self._transport.send(_metrics(job_id, names, from_step, to_step, resolution)).data


class AsyncMetrics:
    """As `Metrics`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(
        self,
        job_id: str,
        names: Sequence[str] = (),
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        resolution: int | None = None,
    ) -> Sequence[MetricSeries]:
        """The metrics of these names, or all; about `resolution` points each, peaks kept."""
        return (await self._transport.send(_metrics(job_id, names, from_step, to_step, resolution))).data


class Trajectories:
    """What the student wrote, and what refining made of it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def page(
        self,
        job_id: str,
        outcome: Sequence[str] = (),
        *,
        round: int | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page[TrajectoryView]:
        """One page, by round and position, after the trajectory `after`; any of the outcomes."""
        return self._transport.send(_trajectories(job_id, outcome, round, after, limit))

    def list(
        self, job_id: str, outcome: Sequence[str] = (), *, round: int | None = None, num_wanted: int | None = None
    ) -> Iterator[TrajectoryView]:
        """Trajectories over all pages; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk(
            lambda after: self._transport.send(_trajectories(job_id, outcome, round, after, limit)),
            lambda trajectory: trajectory.id,
            num_wanted=num_wanted,
        )

    def get(self, job_id: str, trajectory_id: str) -> TrajectoryView:
        """One trajectory, by its ``round:position``."""
        return self._transport.send(_trajectory(job_id, trajectory_id))

    def outcomes(self, job_id: str) -> Sequence[OutcomeCount]:
        """How many had which outcome, by round."""
        return self._transport.send(_outcomes(job_id)).data


class AsyncTrajectories:
    """As `Trajectories`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def page(
        self,
        job_id: str,
        outcome: Sequence[str] = (),
        *,
        round: int | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page[TrajectoryView]:
        """One page, by round and position, after the trajectory `after`; any of the outcomes."""
        return await self._transport.send(_trajectories(job_id, outcome, round, after, limit))

    def list(
        self, job_id: str, outcome: Sequence[str] = (), *, round: int | None = None, num_wanted: int | None = None
    ) -> AsyncIterator[TrajectoryView]:
        """Trajectories over all pages; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk_async(
            lambda after: self._transport.send(_trajectories(job_id, outcome, round, after, limit)),
            lambda trajectory: trajectory.id,
            num_wanted=num_wanted,
        )

    async def get(self, job_id: str, trajectory_id: str) -> TrajectoryView:
        """One trajectory, by its ``round:position``."""
        return await self._transport.send(_trajectory(job_id, trajectory_id))

    async def outcomes(self, job_id: str) -> Sequence[OutcomeCount]:
        """How many had which outcome, by round."""
        return (await self._transport.send(_outcomes(job_id))).data


class Evaluations:
    """The student's scores over the run."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, job_id: str) -> Sequence[EvaluationView]:
        """By step; the first is the baseline."""
        return self._transport.send(_evaluations(job_id)).data


class AsyncEvaluations:
    """As `Evaluations`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self, job_id: str) -> Sequence[EvaluationView]:
        """By step; the first is the baseline."""
        return (await self._transport.send(_evaluations(job_id))).data


class Diagnoses:
    """What each round says of prefix failure."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, job_id: str, *, num_wanted: int | None = None) -> Iterator[DiagnosisView]:
        """By round; none where the job has its diagnosis switched off."""
        limit = page_size(num_wanted)
        return walk(
            lambda after: self._transport.send(_diagnoses(job_id, after, limit)),
            lambda row: row.round,
            num_wanted=num_wanted,
        )


class AsyncDiagnoses:
    """As `Diagnoses`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self, job_id: str, *, num_wanted: int | None = None) -> AsyncIterator[DiagnosisView]:
        """By round; none where the job has its diagnosis switched off."""
        limit = page_size(num_wanted)
        return walk_async(
            lambda after: self._transport.send(_diagnoses(job_id, after, limit)),
            lambda row: row.round,
            num_wanted=num_wanted,
        )
