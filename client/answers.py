"""What the service answers, typed. Fields that a newer service adds are kept, and shown by ``--json``."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from contract.job_spec import Mode
from contract.job_state import FINAL_STATUSES, JobStatus, Phase
from contract.trajectory_outcome import Outcome


class Answer(BaseModel):
    """Of which every answer is one."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


Item = TypeVar("Item")


class Page(Answer, Generic[Item]):
    """Part of a list."""

    data: list[Item]
    has_more: bool


class JobError(Answer):
    """Why a job failed."""

    code: str
    message: str | None
    retryable: bool
    """True where the very same job may succeed when it is resumed."""
    hint: str | None


class JobProgress(Answer):
    """Where a job stands: of the job itself, and of the ``progress`` frames between its events."""

    id: str
    status: JobStatus
    attempt: int
    phase: Phase | None
    phase_done: int | None
    phase_total: int | None
    round: int | None
    num_rounds: int | None
    step: int
    num_steps: int | None
    eta_seconds: float | None
    latest_metrics: dict[str, float | None]

    @property
    def is_over(self) -> bool:
        """True where nothing but a user's ``resume`` moves the job again."""
        return self.status in FINAL_STATUSES


class Job(JobProgress):
    """A job."""

    name: str | None
    mode: Mode
    queue: str
    priority: int
    queue_position: int | None
    expected_start_at: datetime | None
    """Of a queued job that was asked for by its id; null where nothing tells it."""
    expected_finish_at: datetime | None
    expected_note: str | None = None
    """Why one of the two is null."""
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cloned_from: str | None
    tags: list[str]
    metadata: dict[str, str]
    spec: dict[str, Any]
    """With every default resolved."""


class Memory(Answer):
    """Peak bytes on one device."""

    student_bytes: int
    teacher_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    loss_bytes: int
    sampler_bytes: int
    total_bytes: int


class Duration(Answer):
    """How long one attempt takes, the wait in the queue left out."""

    seconds: float
    seconds_by_phase: dict[str, float]
    time_source: Literal["history", "calibration"]
    """From the owner's like jobs, or from a constant that was measured once on a CPU: an upper bound."""
    num_like_jobs: int


class DryRun(Answer):
    """What a submission would make."""

    spec: dict[str, Any]
    """With every default resolved."""
    estimate: dict[str, Any] | None
    """Counts of a whole run; null where the number of problems is known only to the worker."""
    memory: Memory | None
    """On each device; null where a model's sizes are not known to the service."""
    duration: Duration | None
    """Null where nothing tells it."""
    estimate_notes: list[str]
    """What the estimates assume, and why one is missing."""
    notices: list[str]
    """What was chosen otherwise than by default, and why."""


class Deleted(Answer):
    """What was removed."""

    id: str
    deleted: Literal[True]


class Event(Answer):
    """Something that happened to a job."""

    sequence: int
    """Number within the job, from 1, without a gap."""
    type: str
    level: Literal["info", "warn", "error"]
    message: str
    data: dict[str, Any]
    created_at: datetime


class StreamEnd(Answer):
    """The job is over, and so is its stream."""

    status: JobStatus | None
    """Null where the stream was asked for again after its end."""


class MetricSeries(Answer):
    """One metric over the steps. The lists belong together by position."""

    name: str
    num_points: int
    is_thinned: bool
    steps: list[int]
    values: list[float | None]
    """Null where the value was not finite."""
    at: list[float]


class Trajectory(Answer):
    """A rollout y_o, its refinement y_r where there is one, and the verdicts on both."""

    id: str
    """``round:position``."""
    round: int
    position: int
    problem_id: str
    sample: int
    outcome: Outcome
    prompt: str
    answer: str
    rollout: str
    refined: str | None
    parts_at: int | None
    parts_at_token: int | None
    rollout_correct: bool
    refined_correct: bool | None
    rollout_tokens: int
    refined_tokens: int | None
    detail: dict[str, Any]
    per_token_kl: dict[str, list[float | None] | None] | None


class OutcomeCount(Answer):
    """How many trajectories of a round had an outcome."""

    round: int
    outcome: Outcome
    num_trajectories: int


class ProbeSample(Answer):
    """What the student answers to one of a few fixed problems at one evaluation."""

    id: str
    """``step:position``."""
    step: int
    position: int
    """Of the problem: the same one at every step."""
    problem_id: str
    prompt: str
    completion: str
    correct: bool
    created_at: datetime


class Diagnosis(Answer):
    """What a sample of a round's trajectories says of prefix failure, before anything was trained on it."""

    round: int
    step: int
    """Optimizer steps taken before the round."""
    report: dict[str, Any]
    """The engine's figures; ``docs/diagnosis.md`` has the formulas. Null where one was not finite."""
    created_at: datetime


class Evaluation(Answer):
    """Scores on one set of problems at one step, with their 95 % intervals."""

    step: int
    """0 is the baseline, before training."""
    dataset: str
    k: int
    num_problems: int
    avg_at_k: float
    avg_low: float
    avg_high: float
    pass_at_k: float
    pass_low: float
    pass_high: float
    detail: dict[str, Any]
    created_at: datetime


class Checkpoint(Answer):
    """A complete checkpoint."""

    id: str
    job_id: str
    step: int
    attempt: int
    formats: list[str]
    """adapter: a PEFT folder; merged, full: a model folder that stands alone."""
    num_bytes: int
    manifest_sha256: str
    metrics: dict[str, Any]
    created_at: datetime


class CheckpointFile(Answer):
    """One file of a checkpoint."""

    name: str
    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    url: str
    """Path on the service."""


class Manifest(Checkpoint):
    """A checkpoint with all its files."""

    files: list[CheckpointFile]
    archive_url: str


class Dataset(Answer):
    """An uploaded, validated file of problems."""

    id: str
    filename: str
    format: Literal["jsonl", "parquet"]
    num_rows: int
    num_bytes: int
    sha256: str
    has_solutions: bool
    created_at: datetime


class PreviewPrompt(Answer):
    """One prompt as its model reads it."""

    kind: str
    text: str
    num_tokens: int
    token_ids: list[int]
    num_cut_solution_tokens: int
    attempt_tokens_that_fit: int | None


class PreviewRow(Answer):
    """What a job would ask with one row."""

    row: int
    id: str | None
    has_solution: bool
    is_exact: bool
    dropped: str | None
    prompts: list[PreviewPrompt]


class DatasetPreview(Answer):
    """The first rows of a dataset as prompts."""

    dataset_id: str
    data: list[PreviewRow]


class Key(Answer):
    """A key, without the key."""

    id: str
    name: str
    owner: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class CreatedKey(Key):
    """The one answer that holds the key itself."""

    key: str


class Model(Answer):
    """A model that a job may name as student or teacher."""

    id: str
    is_local: bool
    revision: str | None
    context_tokens: int | None
    vocabulary_tokens: int | None
    tokenizer_fingerprint: str | None
    refusal: str | None
    """Why a job that names it is refused; null where it may be used."""


class Health(Answer):
    """The process answers."""

    status: str


class Readiness(Answer):
    """Whether requests can be served, and the state of each part."""

    status: str
    database: str
    schema_state: str = Field(alias="schema")
    storage: str
    broker: str

    @property
    def is_ready(self) -> bool:
        """True where requests can be served."""
        return self.status == "ready"
