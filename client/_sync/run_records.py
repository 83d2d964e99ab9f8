# Generated from client/_async/run_records.py by `python client/generate.py`. Do not edit.

"""What a run recorded: ``/jobs/{id}/metrics``, ``…/trajectories``, ``…/evaluations``, ``…/diagnosis`` and
``…/probe-samples``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from client._sync.transport import Cursor, Resource
from client.call import Call, path_part
from contract.views.diagnosis import DiagnosisView
from contract.views.evaluations import EvaluationView
from contract.views.metrics import MetricSeries
from contract.views.page import Page
from contract.views.probe_samples import ProbeSampleView
from contract.views.trajectories import OutcomeCount, TrajectoryView


class Metrics(Resource):
    """Curves over the steps."""

    def list(
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
        return (self._transport.send(Call("GET", path, Page[MetricSeries], params=params))).data


def _trajectories(
    job_id: str, outcome: Sequence[str], round: int | None, after: Cursor, limit: int
) -> Call[Page[TrajectoryView]]:
    params = {"outcome": [str(name) for name in outcome], "round": round, "after": after, "limit": limit}
    return Call("GET", f"/jobs/{path_part(job_id)}/trajectories", Page[TrajectoryView], params=params)


class Trajectories(Resource):
    """The student's rollouts and their refinements."""

    def page(
        self,
        job_id: str,
        outcome: Sequence[str] = (),
        *,
        round: int | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page[TrajectoryView]:
        """Return one page, by round and position, after the trajectory with the id `after`; any of the outcomes."""
        return self._transport.send(_trajectories(job_id, outcome, round, after, limit))

    def list(
        self, job_id: str, outcome: Sequence[str] = (), *, round: int | None = None, num_wanted: int | None = None
    ) -> Iterator[TrajectoryView]:
        """Iterate over all pages, up to `num_wanted` trajectories."""
        return self._transport.walk(
            lambda after, limit: _trajectories(job_id, outcome, round, after, limit),
            lambda trajectory: trajectory.id,
            num_wanted=num_wanted,
        )

    def get(self, job_id: str, trajectory_id: str) -> TrajectoryView:
        """Return one trajectory by its ``round:position``."""
        path = f"/jobs/{path_part(job_id)}/trajectories/{path_part(trajectory_id)}"
        return self._transport.send(Call("GET", path, TrajectoryView))

    def outcomes(self, job_id: str) -> Sequence[OutcomeCount]:
        """Return how many trajectories had which outcome, by round."""
        path = f"/jobs/{path_part(job_id)}/trajectories/outcomes"
        return (self._transport.send(Call("GET", path, Page[OutcomeCount]))).data


class Evaluations(Resource):
    """The student's scores over the run."""

    def list(self, job_id: str) -> Sequence[EvaluationView]:
        """Return the scores by step; the first is the baseline."""
        path = f"/jobs/{path_part(job_id)}/evaluations"
        return (self._transport.send(Call("GET", path, Page[EvaluationView]))).data


class Diagnoses(Resource):
    """What each round shows about prefix failure."""

    def list(self, job_id: str, *, num_wanted: int | None = None) -> Iterator[DiagnosisView]:
        """Iterate by round; empty if the job's diagnosis is switched off."""
        path = f"/jobs/{path_part(job_id)}/diagnosis"
        return self._transport.walk(
            lambda after, limit: Call("GET", path, Page[DiagnosisView], params={"after": after, "limit": limit}),
            lambda diagnosis: diagnosis.round,
            num_wanted=num_wanted,
        )


class ProbeSamples(Resource):
    """The student's answers to a few fixed problems over the run."""

    def list(self, job_id: str, *, step: int | None = None, num_wanted: int | None = None) -> Iterator[ProbeSampleView]:
        """Iterate by step and position, or only over the evaluation at `step`; up to `num_wanted` samples."""
        path = f"/jobs/{path_part(job_id)}/probe-samples"
        return self._transport.walk(
            lambda after, limit: Call(
                "GET", path, Page[ProbeSampleView], params={"step": step, "after": after, "limit": limit}
            ),
            lambda sample: sample.id,
            num_wanted=num_wanted,
        )
