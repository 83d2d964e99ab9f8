"""What a run recorded: ``/jobs/{id}/metrics``, ``…/trajectories``, ``…/evaluations``, ``…/diagnosis`` and
``…/probe-samples``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypedDict, Unpack

from client._async.transport import AsyncResource
from client.call import Call, path_part
from contract.views import Page
from contract.views.diagnosis import DiagnosisView
from contract.views.runs import EvaluationView, MetricPage, MetricSeries, ProbeSampleView
from contract.views.trajectories import OutcomeCount, TrajectoryDetailView, TrajectoryPage, TrajectoryView


class AsyncMetrics(AsyncResource):
    """Curves over the steps."""

    async def list(
        self,
        job_id: str,
        names: Sequence[str] = (),
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        resolution: int | None = None,
    ) -> Sequence[MetricSeries]:
        """Return the metrics with these names, or all; about `resolution` points each, including the peaks."""
        range = {"from_step": from_step, "to_step": to_step, "resolution": resolution}
        params = {"names": ",".join(names) or None, **range}
        path = f"/jobs/{path_part(job_id)}/metrics"
        return (await self._transport.send(Call("GET", path, MetricPage, params=params))).data


class TrajectoryFilters(TypedDict, total=False):
    """Which trajectories to list; what is left out or None does not filter."""

    round: int | None
    """Number of the round, from 0."""
    step: int | None
    """The first step that trains on them."""
    min_tokens: int | None
    """Least tokens of the longer one of y_o and y_r."""
    max_tokens: int | None
    text: str | None
    """Text to find in the prompt, in y_o or in y_r, in upper or lower case."""


class AsyncTrajectories(AsyncResource):
    """The student's rollouts and their refinements."""

    async def page(
        self,
        job_id: str,
        outcome: Sequence[str] = (),
        *,
        after: str | None = None,
        limit: int = 20,
        **filters: Unpack[TrajectoryFilters],
    ) -> TrajectoryPage:
        """Return one page, by round and position, after the trajectory with the id `after`; any of the outcomes."""
        path = f"/jobs/{path_part(job_id)}/trajectories"
        params = {**filters, "outcome": list(map(str, outcome)), "after": after, "limit": limit}
        return await self._transport.send(Call("GET", path, TrajectoryPage, params=params))

    def list(
        self,
        job_id: str,
        outcome: Sequence[str] = (),
        *,
        num_wanted: int | None = None,
        **filters: Unpack[TrajectoryFilters],
    ) -> AsyncIterator[TrajectoryView]:
        """Iterate over all pages, up to `num_wanted` trajectories."""
        path = f"/jobs/{path_part(job_id)}/trajectories"
        params = {**filters, "outcome": list(map(str, outcome))}
        return self._transport.walk(
            path, TrajectoryPage, lambda trajectory: trajectory.id, params=params, num_wanted=num_wanted
        )

    async def get(
        self, job_id: str, trajectory_id: str, *, tokens: bool = False, alignment: bool = False
    ) -> TrajectoryDetailView:
        """Return one trajectory by its ``round:position``; token by token and aligned if wanted."""
        path = f"/jobs/{path_part(job_id)}/trajectories/{path_part(trajectory_id)}"
        params = {"tokens": tokens or None, "alignment": alignment or None}
        return await self._transport.send(Call("GET", path, TrajectoryDetailView, params=params))

    async def outcomes(self, job_id: str) -> Sequence[OutcomeCount]:
        """Return how many trajectories had which outcome, by round."""
        path = f"/jobs/{path_part(job_id)}/trajectories/outcomes"
        return (await self._transport.send(Call("GET", path, Page[OutcomeCount]))).data


class AsyncEvaluations(AsyncResource):
    """The student's scores over the run."""

    async def list(self, job_id: str) -> Sequence[EvaluationView]:
        """Return the scores by step; the first is the baseline."""
        path = f"/jobs/{path_part(job_id)}/evaluations"
        return (await self._transport.send(Call("GET", path, Page[EvaluationView]))).data


class AsyncDiagnoses(AsyncResource):
    """What each round shows about prefix failure."""

    def list(self, job_id: str, *, num_wanted: int | None = None) -> AsyncIterator[DiagnosisView]:
        """Iterate by round; empty if the job's diagnosis is switched off."""
        path = f"/jobs/{path_part(job_id)}/diagnosis"
        return self._transport.walk(path, Page[DiagnosisView], lambda diagnosis: diagnosis.round, num_wanted=num_wanted)


class AsyncProbeSamples(AsyncResource):
    """The student's answers to a few fixed problems over the run."""

    def list(
        self, job_id: str, *, step: int | None = None, num_wanted: int | None = None
    ) -> AsyncIterator[ProbeSampleView]:
        """Iterate by step and position, or only over the evaluation at `step`; up to `num_wanted` samples."""
        path = f"/jobs/{path_part(job_id)}/probe-samples"
        return self._transport.walk(
            path, Page[ProbeSampleView], lambda sample: sample.id, params={"step": step}, num_wanted=num_wanted
        )
