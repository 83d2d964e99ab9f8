"""How users read what a run recorded. Each surface calls `RunService`, which opens the transactions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import groupby, takewhile
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from contract.database import Database
from contract.job_state import JobStatus
from contract.tables import Diagnosis, Evaluation, Job, ProbeSample, Trajectory
from contract.views.jobs import AttemptView, JobProgress
from contract.views.runs import MetricSeries
from contract.views.trajectories import LengthsView, TokenKl, TrajectoryDetailView, TrajectoryView
from service.errors import NotFoundError
from service.jobs.service import get_job
from service.query import cut
from service.runs import repository
from service.runs.repository import Found, Key
from service.runs.repository import MetricRange as MetricRange  # pages name both, and have no repository
from service.runs.repository import TrajectoryFilter as TrajectoryFilter
from service.runs.token_views import alignment_view, tokens_view

StepMetrics = dict[int, dict[str, float]]
NUM_SPARKS = 32
"""Points of a curve that is as small as a word."""


class RunService:
    """Reads the records of a job's run. All methods raise `NotFoundError` unless the job is the owner's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def _reading(self, owner: str, job_id: str) -> Iterator[Session]:
        with self._database.read() as session:
            get_job(session, owner, job_id)
            yield session

    def attempts(self, owner: str, job_id: str) -> list[AttemptView]:
        """Return the attempts at the job in order."""
        with self._reading(owner, job_id) as session:
            return [AttemptView.of(row) for row in repository.attempts(session, job_id)]

    def metric_series(
        self, owner: str, wanted: MetricRange, resolution: int
    ) -> tuple[list[MetricSeries], datetime | None]:
        """Return one series for each metric, of about `resolution` points at most, and before which time the retention
        policy has removed points.

        A longer series keeps the lowest and the highest point of each stretch of steps, so that peaks stay visible.
        """
        with self._database.read() as session:
            removed_before = get_job(session, owner, wanted.job_id).metrics_removed_before
            if wanted.from_step is not None and not wanted.names:  # the index has the names before the steps
                wanted = replace(wanted, names=repository.metric_names(session, wanted.job_id))
            extents = repository.metric_extents(session, wanted)
            num_points = {row.name: row.num_points for row in extents}
            if max(num_points.values(), default=0) <= resolution:
                rows = repository.metric_points(session, wanted)
            else:
                first = min(row.first_step for row in extents)
                num_steps = max(row.last_step for row in extents) - first + 1
                rows = repository.thinned_metric_points(session, wanted, first, -(-num_steps // (resolution // 2)))
        series = []
        for name, group in groupby(rows, key=lambda row: row.name):
            points = list(group)
            series.append(
                MetricSeries(
                    name=name,
                    num_points=num_points[name],
                    is_thinned=len(points) < num_points[name],
                    steps=[point.step for point in points],
                    values=[point.value for point in points],
                    at=[point.at.timestamp() for point in points],
                )
            )
        return series, removed_before

    def sparklines(self, jobs: Iterable[JobProgress], name: str) -> dict[str, list[float]]:
        """Return a metric of each of the owner's jobs at up to `NUM_SPARKS` of its steps."""
        places = []
        for job in jobs:
            num = min(job.step, NUM_SPARKS)
            places += [(job.id, 1 + round(i * (job.step - 1) / max(1, num - 1))) for i in range(num)]
        values: dict[str, list[float]] = {}
        with self._database.read() as session:
            for point in repository.metrics_at(session, [name], places) if places else []:
                values.setdefault(point.job_id, []).append(point.value)
        return values

    def metrics_at(self, owner: str, job_id: str, names: Collection[str], steps: Iterable[int]) -> StepMetrics:
        """Return these metrics by name for each of the steps, without those that were not measured or not finite."""
        metrics: StepMetrics = {step: {} for step in steps}
        with self._reading(owner, job_id) as session:
            for point in repository.metrics_at(session, names, [(job_id, step) for step in metrics]):
                metrics[point.step][point.name] = point.value
        return metrics

    def num_trained_tokens(self, jobs: Iterable[Job]) -> dict[str, int]:
        """Return the tokens that each of the owner's jobs was trained on, by id; only of jobs that are over."""
        with self._database.read() as session:
            return repository.num_trained_tokens(session, [job.id for job in jobs if JobStatus(job.status).is_final])

    def trajectories(
        self, owner: str, wanted: TrajectoryFilter, after: Key | None, limit: int, *, with_token_kl: bool
    ) -> tuple[Sequence[Trajectory], Found, datetime | None]:
        """Return a page by round and position, what follows it, and before which time the retention policy has removed
        trajectories; `after` is the last key seen."""
        with self._database.read() as session:
            job = get_job(session, owner, wanted.job_id)
            found = repository.find_trajectories(session, wanted, after, limit)
            rows = repository.trajectories(session, wanted.job_id, found.keys, with_token_kl=with_token_kl)
            return rows, found, job.trajectories_removed_before

    def excerpts(
        self, owner: str, wanted: TrajectoryFilter, after: Key | None, limit: int, *, is_backward: bool = False
    ) -> tuple[Sequence[Row[Any]], Found]:
        """Return a page as `trajectories` does, with the beginnings of the texts alone; backward, the page before
        `after`."""
        with self._reading(owner, wanted.job_id) as session:
            found = repository.find_trajectories(session, wanted, after, limit, is_backward=is_backward)
            return repository.trajectory_excerpts(session, wanted.job_id, found.keys), found

    def neighbours(self, owner: str, wanted: TrajectoryFilter, key: Key) -> tuple[Key | None, Key | None]:
        """Return the keys before and after `key` among the wanted trajectories."""
        with self._reading(owner, wanted.job_id) as session:
            both = [
                repository.find_trajectories(session, wanted, key, 1, is_backward=is_backward).keys
                for is_backward in (True, False)
            ]
        before, after = (keys[0] if keys else None for keys in both)
        return before, after

    def trajectory(self, owner: str, job_id: str, key: Key | None, *, with_tokens: bool = False) -> Trajectory:
        """Return the trajectory at (round, position), with what the diagnosis found of each token if that is wanted."""
        with self._database.read() as session:
            removed_before = get_job(session, owner, job_id).trajectories_removed_before
            row = repository.trajectory(session, job_id, key, with_tokens=with_tokens) if key else None
        if row is None:
            removed = removed_before and f"; those from before {removed_before:%Y-%m-%d} were removed by policy"
            raise NotFoundError(f"{job_id} has no such trajectory{removed or ''}", param="trajectory_id")
        return row

    def num_by_outcome(self, owner: str, job_id: str) -> Sequence[tuple[int, str, int]]:
        """Return (round, outcome, count) of the trajectories."""
        with self._reading(owner, job_id) as session:
            return repository.num_by_outcome(session, job_id)

    def lengths(self, owner: str, job_id: str) -> list[LengthsView]:
        """Return how many trajectories of each round had which outcome, and how long they are."""
        with self._reading(owner, job_id) as session:
            names = list(LengthsView.model_fields)
            return [LengthsView(**dict(zip(names, row, strict=True))) for row in repository.lengths(session, job_id)]

    def diagnoses(self, owner: str, job_id: str, after: int | None, limit: int) -> tuple[Sequence[Diagnosis], bool]:
        """Return a page by round, and whether more follow; `after` is the last round seen."""
        with self._reading(owner, job_id) as session:
            return cut(repository.diagnoses(session, job_id, after, limit), limit)

    def diagnosed_rounds(self, owner: str, job_id: str) -> Sequence[Row[int, int, float | None]]:
        """Return (round, step, sampler_gap) of all diagnosed rounds."""
        with self._reading(owner, job_id) as session:
            return repository.diagnosed_rounds(session, job_id)

    def evaluations(self, owner: str, job_id: str) -> Sequence[Evaluation]:
        """Return all evaluations by step."""
        with self._reading(owner, job_id) as session:
            return repository.evaluations(session, job_id)

    def probe_steps(self, owner: str, job_id: str) -> Sequence[int]:
        """Return the steps of the evaluations that have probe samples."""
        with self._reading(owner, job_id) as session:
            return repository.probe_steps(session, job_id)

    def probe_samples(
        self, owner: str, job_id: str, step: int | None, after: tuple[int, int] | None, limit: int
    ) -> tuple[Sequence[ProbeSample], bool]:
        """Return a page by step and position, and whether more follow; `after` is the last (step, position) seen."""
        with self._reading(owner, job_id) as session:
            return cut(repository.probe_samples(session, job_id, step, after, limit), limit)


def trajectory_key(text: str | None) -> Key | None:
    """Return the round and the position in ``1:2``; None for any other text."""
    first, colon, second = (text or "").partition(":")
    is_number = all(part.isascii() and part.isdigit() and len(part) <= 9 for part in (first, second))
    return (int(first), int(second)) if colon and is_number else None


def trajectory_view(row: Trajectory, *, with_token_kl: bool = False) -> TrajectoryView:
    """Return the view of a trajectory."""
    return TrajectoryView.of(row, **_fields(row, with_token_kl=with_token_kl))


def detail_view(
    row: Trajectory, *, with_token_kl: bool = False, with_tokens: bool = False, is_aligned: bool = False
) -> TrajectoryDetailView:
    """Return the view of one trajectory, with what of its tokens is wanted. The row must hold its tokens for that."""
    tokens = tokens_view(row) if with_tokens or is_aligned else None
    return TrajectoryDetailView.of(
        row,
        **_fields(row, with_token_kl=with_token_kl),
        tokens=tokens if with_tokens else None,
        alignment=alignment_view(row, tokens) if is_aligned else None,
    )


def _fields(row: Trajectory, *, with_token_kl: bool) -> dict[str, Any]:
    kl = row.token_kl if with_token_kl else None
    return {
        "id": f"{row.round}:{row.position}",
        "parts_at": _num_alike(row.rollout, row.refined) if row.refined is not None else None,
        "per_token_kl": TokenKl.model_validate(kl) if kl is not None else None,
    }


def _num_alike(rollout: str, refined: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(rollout, refined, strict=False)))
