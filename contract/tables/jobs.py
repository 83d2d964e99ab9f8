"""Tables of datasets, jobs and their runs, webhooks and workers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from contract.tables.base import Base

KINDS_OF_RECORDS = ("events", "metrics", "trajectories", "checkpoints")
"""What the retention policy removes, see `contract.retention`."""


class Dataset(Base):
    """An uploaded, validated file of problems."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    filename: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(20))  # of trd_data.check.FileReport
    num_rows: Mapped[int]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    has_solutions: Mapped[bool]  # every row has a solution, which OPSD needs
    columns: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # our fields to the file's columns
    # What the check at the upload found, which nothing computes again: trd_data.check.FileReport without its errors.
    findings: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    storage_key: Mapped[str] = mapped_column(String(500))
    made_by_retry: Mapped[bool | None]  # true: created by a retry without a key, whose first request may still arrive
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]  # in the future: being uploaded, and deleted then unless it completes

    __table_args__ = (Index(None, "owner", "id"),)


_WAITS = "lower(status) = 'queued' AND deleted_at IS NULL"


def _index_of_due(kind: str) -> Index:
    """Make the index of ended jobs that still have some records: few, however many jobs the table has."""
    is_left = f"{kind}_removed_before IS NULL OR {kind}_removed_before <= finished_at"
    where = text(f"finished_at IS NOT NULL AND deleted_at IS NULL AND ({is_left})")
    return Index(f"ix_jobs_with_{kind}", "finished_at", "id", postgresql_where=where, sqlite_where=where)


class Job(Base):
    """The user's durable request, with its status, its lease and the progress of its run."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    name: Mapped[str | None] = mapped_column(String(200))
    mode: Mapped[str] = mapped_column(String(20))
    spec: Mapped[dict[str, Any]]  # resolved
    requested: Mapped[dict[str, Any] | None]  # as the user wrote it; a clone starts from it
    spec_bytes: Mapped[int] = mapped_column(BigInteger, default=0)  # of spec and requested as JSON; 0: deleted
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    body_sha256: Mapped[str] = mapped_column(String(64))
    cloned_from: Mapped[str | None] = mapped_column(String(40))
    made_by_retry: Mapped[bool | None]  # true: created by a retry without a key, whose first request may still arrive
    origin: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # of contract.tracing
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    status: Mapped[str] = mapped_column(String(20))
    queue: Mapped[str] = mapped_column(String(100))
    priority: Mapped[int] = mapped_column()
    needs: Mapped[str | None] = mapped_column(Text)  # contract.routing.Needs as JSON; NULL: of an earlier version
    attempt: Mapped[int] = mapped_column(default=0)  # number of the newest attempt, 0 before the first
    num_lost: Mapped[int] = mapped_column(default=0)  # attempts in a row lost without a step of progress
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_token: Mapped[int] = mapped_column(BigInteger, default=0)  # fencing token, only ever increased
    lease_expires_at: Mapped[datetime | None]

    phase: Mapped[str | None] = mapped_column(String(20))
    phase_done: Mapped[int | None]
    phase_total: Mapped[int | None]
    round: Mapped[int | None]
    num_rounds: Mapped[int | None]
    step: Mapped[int] = mapped_column(default=0)
    num_steps: Mapped[int | None]
    eta_seconds: Mapped[float | None]
    latest_metrics: Mapped[dict[str, Any]]
    # contract.views.NoticeView documents: of the data, the models and the first round; NULL: none
    notices: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    num_events: Mapped[int] = mapped_column(default=0)  # sequence of the newest event

    error_code: Mapped[str | None] = mapped_column(String(50))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_retryable: Mapped[bool | None]
    error_hint: Mapped[str | None] = mapped_column(Text)

    # The retention policy has removed records from before this time. Not later than finished_at: it has not removed
    # all that is due, since it is at work, or because the job ran again.
    events_removed_before: Mapped[datetime | None]
    metrics_removed_before: Mapped[datetime | None]
    trajectories_removed_before: Mapped[datetime | None]
    checkpoints_removed_before: Mapped[datetime | None]

    @property
    def removed_before(self) -> dict[str, datetime]:
        """When each kind of record was removed, for the kinds of which some were."""
        times = {kind: getattr(self, f"{kind}_removed_before") for kind in KINDS_OF_RECORDS}
        return {kind: time for kind, time in times.items() if time is not None}

    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        Index(None, "owner", "id", "name", "mode", "deleted_at"),  # lists by name without reading specs
        Index(None, "owner", "status", "id"),
        Index("ix_jobs_waiting", "status", "queue", priority.desc(), "id"),  # positions in the order of claims
        # Claims: which kinds of jobs wait in a queue, and the first of each. `lower` keeps databases that have no
        # statistics from taking another index for them, by which they would read every job that waits.
        Index(
            *("ix_jobs_kinds_waiting", "queue", "needs", priority.desc(), "id"),
            postgresql_where=text(_WAITS),
            sqlite_where=text(_WAITS),
        ),
        Index(None, "status", "lease_expires_at"),
        Index(None, "status", "deleted_at", "id"),  # counts from the index alone: rows hold large specs
        *(_index_of_due(kind) for kind in KINDS_OF_RECORDS),
    )


class JobTag(Base):
    """One tag of a job. Each has a row, so that both databases can filter by an index."""

    __tablename__ = "job_tags"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(64), primary_key=True)

    __table_args__ = (Index(None, "tag", "job_id"),)


class Attempt(Base):
    """One try at a job by one worker."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)  # from 1
    worker: Mapped[str] = mapped_column(String(200))
    lease_token: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(20))
    first_step: Mapped[int | None]  # the step it resumed from
    last_step: Mapped[int | None]
    num_writes: Mapped[int] = mapped_column(default=0, server_default="0")  # of its progress: none is applied twice
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    error_code: Mapped[str | None] = mapped_column(String(50))
    error_message: Mapped[str | None] = mapped_column(Text)


class JobEvent(Base):
    """Something that happened to a job, numbered from 1 within it without a gap."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(50))  # status | phase | notice | evaluation | checkpoint
    level: Mapped[str] = mapped_column(String(10))  # info | warn | error
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class MetricPoint(Base):
    """One value of one metric at one step. A resumed run overwrites the steps that it repeats."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float | None]  # NULL if it was not finite
    at: Mapped[datetime]


class Trajectory(Base):
    """A rollout, its refined trajectory if there is one, and the verdicts on both."""

    __tablename__ = "trajectories"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # within the round
    problem_id: Mapped[str] = mapped_column(String(100))
    sample: Mapped[int]
    outcome: Mapped[str] = mapped_column(String(20))  # contract.views.trajectories.Outcome
    prompt: Mapped[str] = mapped_column(Text)  # as rendered by the chat template
    answer: Mapped[str] = mapped_column(Text)
    rollout: Mapped[str] = mapped_column(Text)  # y_o
    refined: Mapped[str | None] = mapped_column(Text)  # y_r
    rollout_correct: Mapped[bool]
    refined_correct: Mapped[bool | None]
    rollout_tokens: Mapped[int]
    refined_tokens: Mapped[int | None]
    step: Mapped[int | None]  # first that trains on it; NULL: none does, or a run of an older version
    parts_at_token: Mapped[int | None]  # length in tokens of the common prefix of y_o and y_r; NULL without a y_r
    detail: Mapped[dict[str, Any]]  # finish reasons, explanations of the verdicts, truncations
    # {"rollout": [nats…], "refined": [nats…] | null} if diagnosed; one number per token: large, read only on request
    token_kl: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    # contract.views.trajectories.TokenDetail, as large as token_kl
    token_detail: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)

    __table_args__ = (
        Index(None, "job_id", "outcome", "round", "position"),
        Index(None, "job_id", "step", "round", "position"),
        # Pages are chosen from this index alone: rows hold long texts.
        Index(
            "ix_trajectories_filters",
            *("job_id", "round", "position", "outcome", "step", "rollout_tokens", "refined_tokens"),
        ),
    )


class Evaluation(Base):
    """The student's scores on one set of problems at one step; step 0 is the baseline."""

    __tablename__ = "evaluations"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    dataset: Mapped[str] = mapped_column(String(100), primary_key=True)
    k: Mapped[int]
    num_problems: Mapped[int]
    avg_at_k: Mapped[float]
    avg_low: Mapped[float]  # 95 % interval
    avg_high: Mapped[float]
    pass_at_k: Mapped[float]
    pass_low: Mapped[float]
    pass_high: Mapped[float]
    detail: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Diagnosis(Base):
    """The diagnosis of a sample of a round's trajectories, made before training on them."""

    __tablename__ = "diagnoses"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int]  # optimizer steps taken before the round
    report: Mapped[dict[str, Any]]  # figures and curves, described in docs/diagnosis.md
    created_at: Mapped[datetime]


class ProbeSample(Base):
    """The student's full answer to one of a few fixed problems at one evaluation."""

    __tablename__ = "probe_samples"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # position of the problem, the same at every step
    problem_id: Mapped[str] = mapped_column(String(100))
    prompt: Mapped[str] = mapped_column(Text)  # as rendered by the chat template
    completion: Mapped[str] = mapped_column(Text)
    correct: Mapped[bool]
    created_at: Mapped[datetime]


class Checkpoint(Base):
    """A complete checkpoint: its files are in the storage, and its manifest was verified."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[int]
    attempt: Mapped[int]
    formats: Mapped[list[str]]  # "adapter", "merged", "full"
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    storage_prefix: Mapped[str] = mapped_column(String(500))
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("job_id", "step"),)


class ChatAnswer(Base):
    """One answer of a chat with a checkpoint, its base model or its teacher. It lives as long as somebody reads it."""

    __tablename__ = "chat_answers"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[int]
    model: Mapped[str] = mapped_column(String(20))  # contract.views.chats.ChatModel
    queue: Mapped[str] = mapped_column(String(100))
    question: Mapped[dict[str, Any]]  # messages, temperature, max_new_tokens
    origin: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # of contract.tracing
    wanted_until: Mapped[datetime]  # renewed by the process that streams it
    worker: Mapped[str | None] = mapped_column(String(200))  # NULL: waits
    leased_until: Mapped[datetime | None]  # renewed by the worker
    is_loaded: Mapped[bool] = mapped_column(default=False)
    text: Mapped[str] = mapped_column(Text, default="")  # so far
    end: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # contract.views.chats.AnswerEnd

    __table_args__ = (Index(None, "queue", "id"),)


class CheckpointFile(Base):
    """One file of a checkpoint. Downloads look files up here and never join a path from a client."""

    __tablename__ = "checkpoint_files"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)  # "adapter/adapter_model.safetensors"
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(800))


class Webhook(Base):
    """A receiver of an owner's events."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    event_types: Mapped[list[str]]  # contract.views.webhooks.WebhookEvent; empty: all
    is_enabled: Mapped[bool]
    secret: Mapped[str] = mapped_column(String(100))  # whsec_…: as it is, because every delivery is signed with it
    created_at: Mapped[datetime]


class WebhookDelivery(Base):
    """One event for one receiver, stored in the transaction of the change that it reports, and sent later."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)  # the header webhook-id, the same at every try
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    event_type: Mapped[str] = mapped_column(String(50))
    body: Mapped[str] = mapped_column(Text)  # the bytes that are signed and sent, the same at every try
    status: Mapped[str] = mapped_column(String(20))  # contract.views.webhooks.DeliveryStatus
    num_tries: Mapped[int]
    created_at: Mapped[datetime]
    due_at: Mapped[datetime | None]  # of the next try; while one is in progress: when it counts as lost. NULL: over
    tried_at: Mapped[datetime | None]
    response_status: Mapped[int | None]
    response_head: Mapped[str | None] = mapped_column(Text)  # the first bytes of the receiver's answer, as text
    error: Mapped[str | None] = mapped_column(Text)  # why there was no answer
    latency_seconds: Mapped[float | None]

    __table_args__ = (Index(None, "status", "due_at"), Index(None, "webhook_id", "id"))


class Worker(Base):
    """A worker process that is alive, and what it found out about its machine when it started."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    queues: Mapped[list[str]]
    device_kind: Mapped[str | None] = mapped_column(String(40))  # of trd_estimate.hardware; NULL: not known yet
    # contract.routing.Offer without the queues; NULL: of an earlier version
    offer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # Findings of `trd doctor --quick`, as it prints them; NULL: the checks have not ended, or are switched off
    findings: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    started_at: Mapped[datetime]
    expires_at: Mapped[datetime]  # renewed while it lives


class LeaderLease(Base):
    """The process that holds a role which only one process may hold, and until when. The reaper's is named reaper."""

    __tablename__ = "leader_leases"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200))
    expires_at: Mapped[datetime]
