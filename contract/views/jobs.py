"""Jobs, and what a dry run of a submission returns."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from contract.job_spec import JobSpec, Mode
from contract.job_state import FINAL_STATUSES, AttemptStatus, JobStatus, Phase
from contract.views import NoticeView, OpenEnum, View


class JobError(View):
    """Why a job failed."""

    code: str
    """Stable; see contract/error_codes.py."""
    message: str | None
    retryable: bool
    """True if the unchanged job may succeed when it is resumed."""
    hint: str | None


class JobProgress(View):
    """How far a job is: part of the job itself, and the ``progress`` frames between the events of a stream."""

    id: str
    status: OpenEnum[JobStatus]
    attempt: int
    """Number of the newest attempt; 0 before the first."""
    phase: OpenEnum[Phase] | None
    phase_done: int | None
    """Samples, sequences or steps of the phase that are done."""
    phase_total: int | None
    round: int | None
    """Number of the round, from 0."""
    num_rounds: int | None
    step: int
    """Optimizer steps done."""
    num_steps: int | None
    eta_seconds: float | None
    """Until the end of the whole run, as estimated by the engine."""
    latest_metrics: dict[str, float | None]

    @property
    def is_over(self) -> bool:
        """Whether nothing but a user's ``resume`` can change the job again."""
        return self.status in FINAL_STATUSES


class WouldWaitFor(View):
    """Why no live worker can run a job, not even after its present one. The job is accepted all the same: it starts if
    a worker comes that can."""

    reason: OpenEnum[Literal["no_worker", "model", "devices", "memory"]]
    """no_worker: none serves the job's queue; model: none has these models; devices: none has so many; memory: none
    has what weights, gradients and moments alone take, by the estimate of docs/estimate.md."""
    message: str
    """Message for people; may change."""
    needed: int | None = None
    """Number of devices, or bytes of memory."""
    largest: int | None = None
    """The largest number of devices or bytes that a live worker has."""
    models: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Names that no worker has, or that none has together; ``endpoint:NAME`` is a served teacher."""


class JobView(JobProgress):
    """A job."""

    object: Literal["job"] = "job"
    notices: list[NoticeView] = []  # noqa: RUF012 - pydantic copies it
    """Findings in the job's data, models, settings and first round that deserve a look; at most 50."""
    name: str | None
    mode: OpenEnum[Mode]
    queue: str
    priority: int
    queue_position: int | None
    """1 is claimed next; counting stops at 200; null unless the job is queued."""
    would_wait_for: WouldWaitFor | None = None
    """What no live worker has that the job needs, as the workers are now; null if one can run it, and unless the job
    is queued."""
    expected_start_at: datetime | None
    """Only for a queued job, and only in GET /jobs/{id}: when a worker is expected to be free for it, from the
    remaining times of the jobs that run or wait before it. Null if one of these is unknown, if more than 20 jobs wait,
    and while no worker is known to serve the queue."""
    expected_finish_at: datetime | None
    """expected_start_at plus the time that similar jobs of the same owner took; null if there are none, or if the
    start is null."""
    expected_note: str | None
    """Why one of the two is null, for a queued job in GET /jobs/{id}; text for people, which may change."""
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cloned_from: str | None
    tags: list[str]
    metadata: dict[str, str]
    removed_before: dict[str, datetime] = {}  # noqa: RUF012 - pydantic copies it
    """The retention policy has removed records from before these times, by kind: events, metrics, trajectories (with
    the answers to the probe problems) and checkpoints. Empty if it removed nothing."""
    spec: dict[str, Any]
    """The spec with every default resolved."""


class AttemptView(View):
    """One try at a job by one worker."""

    number: int
    """Number of the attempt, from 1."""
    worker: str
    status: OpenEnum[AttemptStatus]
    first_step: int | None
    """The step that it resumed from."""
    last_step: int | None
    started_at: datetime
    finished_at: datetime | None
    error_code: str | None
    error_message: str | None


class EstimateView(View):
    """Counts for a whole run. Token counts are upper bounds: every completion is as long as its budget."""

    num_problems: int
    num_heldout: int
    num_trajectories: int
    num_steps: int
    num_evaluations: int
    num_trained_trajectories: int
    """Trajectories in optimizer steps; one that is used several times is counted each time."""
    num_evaluation_samples: int
    max_rollout_tokens: int
    max_refined_tokens: int
    max_trained_tokens: int
    max_evaluation_tokens: int


class PhaseView(View):
    """One phase of a run, by the formulas of docs/estimate.md; null if something is unknown."""

    phase: OpenEnum[Phase]
    num_tokens: int | None
    """Expected: sampled tokens, and in training those that student and teacher read."""
    max_tokens: int | None
    """If every text is as long as its budget."""
    device_bytes: dict[str, int]
    """On each training device, by owner, such as student_weights, moments or kv_cache; empty if the service does not
    know the sizes of a model."""
    total_bytes: int
    """The sum of device_bytes."""
    host_bytes: int | None
    """Bytes of the worker's memory, besides the libraries of each process."""
    disk_bytes: int | None
    """What is on the worker's disk because of this phase."""
    seconds: float | None


class MemoryView(View):
    """The largest phase of each kind of memory."""

    device: str
    """Kind of device that is assumed, such as h100 or cpu."""
    device_bytes: int | None
    """Memory of one device; null for a CPU."""
    peak_bytes: int
    """Bytes on each training device, in peak_phase."""
    peak_phase: OpenEnum[Phase]
    host_bytes: int
    disk_bytes: int


class DurationView(View):
    """How long one attempt takes, without the wait in the queue."""

    seconds: float
    evaluation_share: float | None
    """Share of the time that the evaluations take."""
    time_source: OpenEnum[Literal["history", "peak_figures", "calibration"]]
    """history: medians over similar jobs of the owner; peak_figures: the GPU's data sheet and expected lengths;
    calibration: a constant that was measured once on a CPU, times the maximum number of tokens."""
    num_like_jobs: int
    """Number of jobs that the medians are over."""


class _SchemaOfJobSpec:
    """Describes a plain document as a `JobSpec`, whose parser would refuse a field of a newer service."""

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(JobSpec.__pydantic_core_schema__)


class DryRunView(View):
    """What ``POST /jobs`` would create."""

    object: Literal["job.dry_run"] = "job.dry_run"
    spec: Annotated[dict[str, Any], _SchemaOfJobSpec()]
    """The spec with every default resolved."""
    estimate: EstimateView | None
    """Null if only the worker can know the number of problems."""
    phases: list[PhaseView]
    memory: MemoryView | None
    """Null if the service does not know the sizes of a model."""
    duration: DurationView | None
    """Null if the number of problems is unknown, or if there are neither similar jobs nor known model sizes."""
    estimate_notes: list[str]
    """What the estimates assume, and why one is missing."""
    notices: list[NoticeView]
    """Findings in the data, the models and the settings, such as budgets that were lowered."""
    would_wait_for: WouldWaitFor | None = None
    """What no live worker has that the job needs, as the workers are now; null if one can run it."""


class DeletedView(View):
    """What was deleted."""

    object: Literal["job"] = "job"
    id: str
    deleted: Literal[True] = True
