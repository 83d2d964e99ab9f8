"""Everything that can go wrong between a program and the service, as one tree.

TrdError                         message, and a hint where there is something to do
├── SettingsError                no key, or an address that is none
├── ConnectionFailedError        nothing answered
│   └── TimedOutError            not in time
├── UnexpectedAnswerError        what answers is not this service, or one that this client does not know
├── DownloadError                the bytes are not the manifest's
├── JobFailedError               a job that was waited for ended otherwise than well
├── JobPausedError               a job that was followed or waited for is paused
└── ApiError                     the service refused: status, code, param, request id, all faults
    ├── InvalidRequestError      400, 413, 415, 416, 422
    ├── AuthenticationError      401
    ├── PermissionDeniedError    403
    ├── NotFoundError            404
    ├── ConflictError            409
    ├── TooManyError             429  a rate limit, or a quota
    └── ServerError              5xx
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class TrdError(Exception):
    """`message` says what is wrong; `hint`, where there is one, what to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(TrdError):
    """The client does not know where to ask, or with which key."""


class ConnectionFailedError(TrdError):
    """Nothing answered. Whether the request was received is not known, unless `was_never_sent`."""

    was_never_sent = False


class TimedOutError(ConnectionFailedError):
    """An answer did not come in time."""


class UnexpectedAnswerError(TrdError):
    """The answer does not have the form that it must have."""


class DownloadError(TrdError):
    """A downloaded file is not what the manifest says."""


class JobFailedError(TrdError):
    """A job ended as failed or cancelled; `code` is the job's own error code, where it failed."""

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class JobPausedError(TrdError):
    """A job that was followed or waited for is paused: only its user moves it again."""


@dataclass(frozen=True)
class Refusal:
    """What the service says of a request that it did not honour."""

    status: int
    message: str
    type: str = "unknown"
    code: str = "unknown"
    param: str | None = None
    request_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Where a request has several faults, all of them: rows of a file, fields of a spec."""
    retry_after_seconds: float | None = None
    should_retry: bool | None = None
    """What the service says of trying again; None where it says nothing."""


class ApiError(TrdError):
    """The service refused a request."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, hint=_HINTS.get(refusal.code))
        self.refusal = refusal

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.refusal.status

    @property
    def code(self) -> str:
        """Stable: programs branch on it."""
        return self.refusal.code

    @property
    def param(self) -> str | None:
        """The field, parameter or header at fault."""
        return self.refusal.param

    @property
    def request_id(self) -> str | None:
        """Under which the service's log tells more."""
        return self.refusal.request_id

    @property
    def errors(self) -> list[dict[str, Any]]:
        """All faults, where the request has several."""
        return self.refusal.errors


class InvalidRequestError(ApiError):
    """A value that cannot be accepted: the message names field, value and remedy."""


class AuthenticationError(ApiError):
    """No key, or one that is not known."""


class PermissionDeniedError(ApiError):
    """The key lacks the scope."""


class NotFoundError(ApiError):
    """Nothing there, or another owner's."""


class ConflictError(ApiError):
    """Not possible in the object's state."""


class TooManyError(ApiError):
    """The key asks too often, or its owner has enough already."""


class ServerError(ApiError):
    """A defect of the service, or something that it needs does not answer."""


_KEY_HINT = "set TRD_API_KEY to a key of this service; `trd up` prints its own"

_HINTS = {
    "missing_api_key": _KEY_HINT,
    "invalid_api_key": _KEY_HINT,
    "insufficient_scope": "ask an admin for a key with the scope: `trd keys create NAME --scope …`",
    "job_not_found": "`trd jobs` lists yours",
    "dataset_not_found": "`trd datasets list` lists yours; `trd datasets upload FILE` makes one",
    "dataset_invalid": "nothing of the file was stored; mend it and send it again",
    "model_not_found": "`trd models` lists what may be named",
    "checkpoint_not_found": "`trd show JOB` tells which checkpoints there are",
    "rate_limit_exceeded": "wait, or ask less often",
}

_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    429: TooManyError,
}


def api_error(refusal: Refusal) -> ApiError:
    """The error for a refusal, by its status."""
    if refusal.status >= 500:
        return ServerError(refusal)
    return _BY_STATUS.get(refusal.status, InvalidRequestError)(refusal)
