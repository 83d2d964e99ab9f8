"""Queries on ``attempts``, ``metric_points``, ``trajectories``, ``diagnoses``, ``evaluations``, ``probe_samples``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, case, false, func, literal_column, or_, select, true, tuple_
from sqlalchemy.orm import Session, undefer

from contract.tables import Attempt, Diagnosis, Evaluation, MetricPoint, ProbeSample, Trajectory
from contract.views.trajectories import Outcome

Points = Sequence[Row[Any, Any, Any, Any]]
"""Rows of four columns, in most queries (name, step, value, at)."""


@dataclass(frozen=True)
class MetricRange:
    """Which points of a job to read; None does not limit."""

    job_id: str
    names: Collection[str] = ()
    from_step: int | None = None
    to_step: int | None = None

    def select(self, *columns: Any) -> Select[Any]:
        """Return a query on these points."""
        query = select(*columns).where(MetricPoint.job_id == self.job_id)
        if self.names:
            query = query.where(MetricPoint.name.in_(self.names))
        if self.from_step is not None:
            query = query.where(MetricPoint.step >= self.from_step)
        if self.to_step is not None:
            query = query.where(MetricPoint.step <= self.to_step)
        return query


def attempts(session: Session, job_id: str) -> Sequence[Attempt]:
    """Return the attempts at a job in order; a job has a handful."""
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()


def metric_names(session: Session, job_id: str) -> Sequence[str]:
    """Return the names of a job's metrics, each by one search of the index: a job has few names and many points."""
    of_job = select(func.min(MetricPoint.name).label("name")).where(MetricPoint.job_id == job_id)
    names = of_job.cte("names", recursive=True)
    following = of_job.where(MetricPoint.name > names.c.name).correlate(names).scalar_subquery()
    names = names.union_all(select(following).where(names.c.name.is_not(None)))
    return session.scalars(select(names.c.name).where(names.c.name.is_not(None))).all()


def metric_extents(session: Session, wanted: MetricRange) -> Sequence[Row[Any, Any, Any, Any]]:
    """Return (name, num_points, first_step, last_step) of each metric."""
    columns = (
        MetricPoint.name,
        func.count().label("num_points"),
        func.min(MetricPoint.step).label("first_step"),
        func.max(MetricPoint.step).label("last_step"),
    )
    return session.execute(wanted.select(*columns).group_by(MetricPoint.name).order_by(MetricPoint.name)).all()


def metric_points(session: Session, wanted: MetricRange) -> Points:
    """Return (name, step, value, at) of every point, in order."""
    query = wanted.select(MetricPoint.name, MetricPoint.step, MetricPoint.value, MetricPoint.at)
    return session.execute(query.order_by(MetricPoint.name, MetricPoint.step)).all()


def metrics_at(session: Session, names: Collection[str], places: Collection[tuple[str, int]]) -> Points:
    """Return (job_id, step, name, value) of these metrics at these (job, step), by step, if the value is finite."""
    query = select(MetricPoint.job_id, MetricPoint.step, MetricPoint.name, MetricPoint.value)
    query = query.where(MetricPoint.name.in_(names), MetricPoint.value.is_not(None))
    query = query.where(tuple_(MetricPoint.job_id, MetricPoint.step).in_(places))
    return session.execute(query.order_by(MetricPoint.step)).all()


def num_trained_tokens(session: Session, job_ids: Collection[str]) -> dict[str, int]:
    """Return the tokens that each job's steps were trained on; a job without a step is not in it."""
    query = select(MetricPoint.job_id, func.sum(MetricPoint.value).label("num_tokens"))
    query = query.where(MetricPoint.job_id.in_(job_ids), MetricPoint.name == "trained_tokens")
    return {row.job_id: int(row.num_tokens or 0) for row in session.execute(query.group_by(MetricPoint.job_id))}


def thinned_metric_points(session: Session, wanted: MetricRange, first_step: int, bucket_steps: int) -> Points:
    """Return the lowest and the highest point of every `bucket_steps` steps, and one that is not finite if there is
    one. An average would hide the peaks of a curve."""
    bucket = (MetricPoint.step - first_step) // bucket_steps
    is_null = MetricPoint.value.is_(None)
    parts = (MetricPoint.name, bucket, is_null)
    lowest = func.row_number().over(partition_by=parts, order_by=(MetricPoint.value, MetricPoint.step))
    highest = func.row_number().over(partition_by=parts, order_by=(MetricPoint.value.desc(), MetricPoint.step))
    ranked = wanted.select(
        MetricPoint.name,
        MetricPoint.step,
        MetricPoint.value,
        MetricPoint.at,
        lowest.label("from_lowest"),
        highest.label("from_highest"),
    ).subquery()
    columns = (ranked.c.name, ranked.c.step, ranked.c.value, ranked.c.at)
    is_kept = or_(ranked.c.from_lowest == 1, ranked.c.from_highest == 1)
    return session.execute(select(*columns).where(is_kept).order_by(ranked.c.name, ranked.c.step)).all()


Key = tuple[int, int]
"""Round and position of a trajectory."""

MAX_SEARCHED = 2000
"""Trajectories whose texts one search reads; the next request continues where it ended."""


@dataclass(frozen=True)
class TrajectoryFilter:
    """Which trajectories of a job to list; empty does not filter."""

    job_id: str
    outcomes: Collection[Outcome] = ()
    round: int | None = None
    step: int | None = None
    """The first step that trains on them."""
    min_tokens: int | None = None
    """Least tokens of the longer one of y_o and y_r."""
    max_tokens: int | None = None
    text: str | None = None
    """Text to find in the prompt, in y_o or in y_r; letters of either case are the same."""

    def select_keys(self) -> Select[int, int]:
        """Return a query for the keys of these trajectories, whatever their texts, that an index alone can answer."""
        longest = case(
            (Trajectory.refined_tokens > Trajectory.rollout_tokens, Trajectory.refined_tokens),
            else_=Trajectory.rollout_tokens,
        )
        conditions = [Trajectory.job_id == self.job_id]
        if self.outcomes:
            conditions.append(Trajectory.outcome.in_(self.outcomes))
        if self.round is not None:
            conditions.append(Trajectory.round == self.round)
        if self.step is not None:
            conditions.append(Trajectory.step == self.step)
        if self.min_tokens is not None:
            conditions.append(longest >= self.min_tokens)
        if self.max_tokens is not None:
            conditions.append(longest <= self.max_tokens)
        return select(Trajectory.round, Trajectory.position).where(*conditions)


@dataclass(frozen=True)
class Found:
    """The keys of a page of trajectories."""

    keys: Sequence[Key]
    has_more: bool
    searched_to: Key | None = None
    """The last trajectory that a search for a text looked at, if it ended before the page was full."""


def find_trajectories(
    session: Session, wanted: TrajectoryFilter, after: Key | None, limit: int, *, is_backward: bool = False
) -> Found:
    """Return the first `limit` keys after `after` by round and position, or before it in falling order."""
    query = wanted.select_keys()
    if after is not None:
        query = query.where(beyond(wanted, after, is_backward=is_backward))
    order = (Trajectory.round, Trajectory.position)
    query = query.order_by(*(column.desc() if is_backward else column for column in order))
    if not wanted.text:
        keys = [(row.round, row.position) for row in session.execute(query.limit(limit + 1))]
        return Found(keys[:limit], len(keys) > limit)
    candidates = [(row.round, row.position) for row in session.execute(query.limit(MAX_SEARCHED + 1))]
    searched = candidates[:MAX_SEARCHED]
    keys = []
    for start in range(0, len(searched), _CHUNK_KEYS):
        chunk = searched[start : start + _CHUNK_KEYS]
        texts = (Trajectory.prompt, Trajectory.rollout, Trajectory.refined)
        has_text = or_(*(text.icontains(wanted.text, autoescape=True) for text in texts))
        rows = session.execute(
            select(Trajectory.round, Trajectory.position).where(_among(wanted.job_id, chunk), has_text)
        )
        holding = {(row.round, row.position) for row in rows}
        keys += [key for key in chunk if key in holding]
        if len(keys) > limit:
            return Found(keys[:limit], has_more=True)
    is_cut = len(candidates) > MAX_SEARCHED
    return Found(keys, is_cut, searched[-1] if is_cut else None)


_CHUNK_KEYS = 200
"""Keys of one statement: SQLite takes a limited number of parameters, and a search may end after its first texts."""


def beyond(wanted: TrajectoryFilter, key: Key, *, is_backward: bool) -> ColumnElement[bool]:
    """Return the condition that a trajectory comes after `key`, or backward before it."""
    if wanted.round is None:
        both, last = tuple_(Trajectory.round, Trajectory.position), tuple_(*key)
        return both < last if is_backward else both > last
    # A filter by round beside a comparison of both columns would make SQLite sort.
    if wanted.round != key[0]:
        return true() if (wanted.round < key[0]) == is_backward else false()
    return Trajectory.position < key[1] if is_backward else Trajectory.position > key[1]


def _among(job_id: str, keys: Sequence[Key]) -> ColumnElement[bool]:
    by_round: dict[int, list[int]] = {}
    for round, position in keys:
        by_round.setdefault(round, []).append(position)
    parts = [and_(Trajectory.round == r, Trajectory.position.in_(positions)) for r, positions in by_round.items()]
    return and_(Trajectory.job_id == job_id, or_(false(), *parts))


def trajectories(
    session: Session, job_id: str, keys: Sequence[Key], *, with_token_kl: bool = False
) -> Sequence[Trajectory]:
    """Return the trajectories with these keys, at most a page of them, by round and position.

    The KL of each token is as long as the texts, and read only `with_token_kl`.
    """
    query = select(Trajectory).where(_among(job_id, keys)).order_by(Trajectory.round, Trajectory.position)
    return session.scalars(query.options(undefer(Trajectory.token_kl)) if with_token_kl else query).all()


EXCERPT_CHARACTERS = 240


def trajectory_excerpts(session: Session, job_id: str, keys: Sequence[Key]) -> Sequence[Row[Any]]:
    """Return the trajectories with these keys by round and position, with the beginnings of their texts alone."""
    texts = [
        func.substr(text, 1, EXCERPT_CHARACTERS).label(text.key)
        for text in (Trajectory.prompt, Trajectory.rollout, Trajectory.refined)
    ]
    columns = (
        Trajectory.round,
        Trajectory.position,
        Trajectory.problem_id,
        Trajectory.sample,
        Trajectory.outcome,
        Trajectory.step,
        Trajectory.rollout_tokens,
        Trajectory.refined_tokens,
        (Trajectory.token_kl.is_not(None)).label("is_diagnosed"),
    )
    query = select(*columns, *texts).where(_among(job_id, keys))
    return session.execute(query.order_by(Trajectory.round, Trajectory.position)).all()


def trajectory(session: Session, job_id: str, key: Key, *, with_tokens: bool = False) -> Trajectory | None:
    """Return one trajectory; `with_tokens` reads what the diagnosis found of each token."""
    options = [undefer(Trajectory.token_kl), undefer(Trajectory.token_detail)] if with_tokens else []
    return session.get(Trajectory, (job_id, *key), options=options)


def num_by_outcome(session: Session, job_id: str) -> Sequence[tuple[int, str, int]]:
    """Return (round, outcome, count) of a job's trajectories."""
    query = select(Trajectory.round, Trajectory.outcome, func.count()).where(Trajectory.job_id == job_id)
    grouped = query.group_by(Trajectory.round, Trajectory.outcome).order_by(Trajectory.round, Trajectory.outcome)
    return [(round, outcome, count) for round, outcome, count in session.execute(grouped)]


def lengths(session: Session, job_id: str) -> Sequence[Row[Any, Any, Any, Any, Any, Any, Any]]:
    """Return (round, outcome, number, mean and maximum tokens of y_o, the same of y_r) of a job's trajectories."""
    # "+ 0" keeps SQLite from grouping in the order of another index, which lacks the lengths: it would read every text.
    parts = ((Trajectory.round + literal_column("0")).label("round"), Trajectory.outcome)
    figures = [f(c) for c in (Trajectory.rollout_tokens, Trajectory.refined_tokens) for f in (func.avg, func.max)]
    query = select(*parts, func.count(), *figures).where(Trajectory.job_id == job_id).group_by(*parts).order_by(*parts)
    return session.execute(query).all()


def diagnoses(session: Session, job_id: str, after: int | None, limit: int) -> Sequence[Diagnosis]:
    """Return diagnoses by round, one more than `limit`; `after` is the last round seen."""
    query = select(Diagnosis).where(Diagnosis.job_id == job_id)
    if after is not None:
        query = query.where(Diagnosis.round > after)
    return session.scalars(query.order_by(Diagnosis.round).limit(limit + 1)).all()


def diagnosed_rounds(session: Session, job_id: str) -> Sequence[Row[int, int, float | None]]:
    """Return (round, step, sampler_gap) of the diagnosed rounds, without the rest of their reports."""
    gap = Diagnosis.report["sampler_gap"].as_float()
    query = select(Diagnosis.round, Diagnosis.step, gap.label("sampler_gap")).where(Diagnosis.job_id == job_id)
    return session.execute(query.order_by(Diagnosis.round)).all()


def evaluations(session: Session, job_id: str) -> Sequence[Evaluation]:
    """Return all evaluations by step; a run makes a handful."""
    query = select(Evaluation).where(Evaluation.job_id == job_id)
    return session.scalars(query.order_by(Evaluation.step, Evaluation.dataset)).all()


def probe_steps(session: Session, job_id: str) -> Sequence[int]:
    """Return the steps that have probe samples, rising."""
    query = select(ProbeSample.step).where(ProbeSample.job_id == job_id, ProbeSample.position == 0)
    return session.scalars(query.order_by(ProbeSample.step)).all()


def probe_samples(
    session: Session, job_id: str, step: int | None, after: tuple[int, int] | None, limit: int
) -> Sequence[ProbeSample]:
    """Return samples by step and position, one more than `limit`; `after` is the last (step, position) seen."""
    query = select(ProbeSample).where(ProbeSample.job_id == job_id)
    if step is not None:
        query = query.where(ProbeSample.step == step)
    if after is not None:
        query = query.where(tuple_(ProbeSample.step, ProbeSample.position) > tuple_(*after))
    return session.scalars(query.order_by(ProbeSample.step, ProbeSample.position).limit(limit + 1)).all()
