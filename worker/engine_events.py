"""The engine's event lines, parsed: the worker's half of the child protocol.

The engine is another program, perhaps of another version, so its events are validated here. Unknown fields are ignored,
so that a newer engine may write more.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=0)]

MAX_PROBLEM_ID_CHARACTERS = 100
"""Width of the column. Uploads are checked against it; rows from a hub or a path have ids of any length."""


def short_problem_id(problem_id: str) -> str:
    """Return the id, shortened if it is too long to be stored."""
    if len(problem_id) <= MAX_PROBLEM_ID_CHARACTERS:
        return problem_id
    return problem_id[: MAX_PROBLEM_ID_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    at: float
    """Unix time, seconds."""

    @property
    def happened_at(self) -> datetime:
        """`at` as a time in UTC."""
        return datetime.fromtimestamp(self.at, UTC)


class PhaseEvent(_Event):
    """The run enters a phase."""

    type: Literal["phase"]
    phase: Annotated[str, Field(max_length=20)]
    round: Count
    num_rounds: Count
    step: Count
    num_steps: Count


class ProgressEvent(_Event):
    """Progress of the phase, and the remaining time of the whole run."""

    type: Literal["progress"]
    phase: Annotated[str, Field(max_length=20)]
    done: Count
    total: Count
    unit: str
    eta_seconds: float | None = None


class MetricsEvent(_Event):
    """Metrics of one optimizer step; null for a value that was not finite."""

    type: Literal["metrics"]
    step: Count
    round: Count = 0
    values: dict[Annotated[str, Field(max_length=100)], float | None]


class TrajectoriesEvent(_Event):
    """A round's trajectories have been written to a file."""

    type: Literal["trajectories"]
    path: str
    """Relative to the run's folder."""
    round: Count
    num: Count


class DiagnosisEvent(_Event):
    """Prefix-failure diagnosis of a sample of the round, before the round's first step."""

    type: Literal["diagnosis"]
    round: Count
    step: Count
    report: dict[str, Any]


class EvaluationEvent(_Event):
    """Scores on one set of problems."""

    type: Literal["evaluation"]
    step: Count
    dataset: Annotated[str, Field(max_length=100)]
    k: Count
    num_problems: Count
    avg_at_k: float
    avg_low: float
    avg_high: float
    pass_at_k: float
    pass_low: float
    pass_high: float
    detail: dict[str, Any] = {}


class ProbeSample(BaseModel):
    """One fixed problem and the student's current completion."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    problem_id: Annotated[str, AfterValidator(short_problem_id)]
    prompt: str
    completion: str
    correct: bool


class ProbeSamplesEvent(_Event):
    """Completions for the same few problems at every evaluation."""

    type: Literal["probe_samples"]
    step: Count
    samples: list[ProbeSample]


class CheckpointEvent(_Event):
    """A checkpoint is complete on the local disk."""

    type: Literal["checkpoint"]
    step: Count
    path: str
    """Relative to the run's folder."""


class NoticeEvent(_Event):
    """A message for the user, with a stable code. One of level warn is shown on top of the job."""

    type: Literal["notice"]
    level: Literal["info", "warn", "error"]
    code: str
    message: str
    remedy: str = ""
    """What the user can do about it."""
    count: Count = 1
    """Rows, rollouts or parts of a model that it concerns."""
    example: str = ""
    data: dict[str, Any] = {}


class FailedEvent(_Event):
    """The run failed for this reason."""

    type: Literal["failed"]
    code: str
    message: str
    traceback: str | None = None
    pass_tokens: tuple[Count, Count] | None = None
    """Most tokens of a pass of the student and of the teacher, with which another attempt may succeed."""


class FinishedEvent(_Event):
    """The run is complete."""

    type: Literal["finished"]
    step: Count
    summary: dict[str, Any] = {}


EngineEvent = (
    PhaseEvent
    | ProgressEvent
    | MetricsEvent
    | TrajectoriesEvent
    | DiagnosisEvent
    | EvaluationEvent
    | ProbeSamplesEvent
    | CheckpointEvent
    | NoticeEvent
    | FailedEvent
    | FinishedEvent
)

_ADAPTER: TypeAdapter[EngineEvent] = TypeAdapter(Annotated[EngineEvent, Discriminator("type")])


class BadEventError(ValueError):
    """A line is not a valid event; the message says why."""


def parse_event(line: bytes) -> EngineEvent:
    """Parse the event in `line`; raises `BadEventError`."""
    try:
        return _ADAPTER.validate_python(load_json_line(line))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "event"
        raise BadEventError(f"{field}: {first['msg']}") from error


def load_json_line(line: bytes) -> Any:
    """Parse the JSON in `line` into values that a database can store; raises `BadEventError`.

    NaN and infinity become null: PostgreSQL's JSON has neither.
    """
    try:
        return _storable(json.loads(line, parse_constant=lambda _: None))
    except ValueError as error:
        raise BadEventError(f"not JSON: {error}") from error


def _storable(value: Any) -> Any:
    """Replace NUL and lone surrogates in all text: a model may sample them, PostgreSQL rejects them."""
    if isinstance(value, str):
        return value.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return value
