"""The status machine of a job, as a table, and the phases inside ``running``."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job stands. The database holds these strings."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True where no worker and no reaper will touch the job again."""
        return self in FINAL_STATUSES


class Phase(StrEnum):
    """What a running job is doing now."""

    PREPARING = "preparing"
    ROLLOUT = "rollout"
    REFINING = "refining"
    DIAGNOSING = "diagnosing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"


class AttemptStatus(StrEnum):
    """How one attempt at a job stands or ended."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # at a step boundary, on request: cancel, pause, or a worker's shutdown
    LOST = "lost"  # its lease expired


class Action(StrEnum):
    """What a user may ask of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"


FINAL_STATUSES = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
"""Statuses that nothing leaves but a user's ``resume`` of a failed or cancelled job."""

LEASED_STATUSES = frozenset({JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING})
"""Statuses in which an attempt holds the job's lease."""

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
            JobStatus.PAUSING,
            JobStatus.CANCELLING,
            JobStatus.QUEUED,  # the attempt was lost, or its worker shut down
        }
    ),
    # A run may end on its own, well or badly, between a request and the step boundary that would honour it.
    JobStatus.PAUSING: frozenset(
        {JobStatus.PAUSED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.RUNNING}
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}
"""Every legal change of status; `assert_transition` refuses all others."""

ACTION_RESULTS: dict[Action, dict[JobStatus, JobStatus]] = {
    Action.CANCEL: {
        JobStatus.QUEUED: JobStatus.CANCELLED,
        JobStatus.RUNNING: JobStatus.CANCELLING,
        JobStatus.PAUSING: JobStatus.CANCELLING,
        JobStatus.PAUSED: JobStatus.CANCELLED,
        JobStatus.CANCELLING: JobStatus.CANCELLING,
        JobStatus.CANCELLED: JobStatus.CANCELLED,
    },
    Action.PAUSE: {
        JobStatus.QUEUED: JobStatus.PAUSED,
        JobStatus.RUNNING: JobStatus.PAUSING,
        JobStatus.PAUSING: JobStatus.PAUSING,
        JobStatus.PAUSED: JobStatus.PAUSED,
    },
    Action.RESUME: {
        JobStatus.PAUSED: JobStatus.QUEUED,
        JobStatus.FAILED: JobStatus.QUEUED,
        JobStatus.CANCELLED: JobStatus.QUEUED,
        JobStatus.QUEUED: JobStatus.QUEUED,
        JobStatus.RUNNING: JobStatus.RUNNING,
    },
}
"""What each action makes of each status. A missing entry is an illegal request (409).
An entry onto the same status is the idempotent repeat of a request already honoured.
``delete`` leads to no status: it removes a job that is over, see `legal_statuses`."""


class IllegalTransitionError(Exception):
    """A change of status that the table does not hold: a bug here, or a lost race."""


def assert_transition(current: JobStatus, new: JobStatus) -> None:
    """Raise `IllegalTransitionError` unless ``current -> new`` is in `TRANSITIONS`."""
    if new not in TRANSITIONS[current]:
        legal = ", ".join(sorted(TRANSITIONS[current])) or "none, it is final"
        raise IllegalTransitionError(f"{current} -> {new} is not legal; legal from {current}: {legal}")


def legal_statuses(action: Action) -> list[JobStatus]:
    """The statuses in which `action` may be asked for, in the order of `JobStatus`."""
    legal = FINAL_STATUSES if action is Action.DELETE else ACTION_RESULTS[action].keys()
    return [status for status in JobStatus if status in legal]


def legal_actions(status: JobStatus) -> list[Action]:
    """What may be asked of a job in `status`, in the order of `Action`."""
    return [action for action in Action if status in legal_statuses(action)]
