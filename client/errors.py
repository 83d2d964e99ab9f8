"""All errors of the client, as one tree.

TrdError                         message, and a hint if the user can do something
├── SettingsError                the address or the key is not valid
├── InvalidValueError            a value of a request has no form in JSON; nothing was sent
├── ConnectionFailedError        no response
│   └── TimedOutError            no response in time
├── UnexpectedAnswerError        the response is not from this service, or from an unknown version
├── DownloadError                a downloaded file does not match the manifest, or its folder has another model
├── JobFailedError               a job that was waited for failed or was cancelled
├── JobPausedError               a job that was followed or waited for is paused
└── ApiError                     the service refused: status, code, param, request id, all errors
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
    """`message` says what is wrong; `hint`, if there is one, what to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(TrdError):
    """The address or the key of the service is not valid."""


class InvalidValueError(TrdError):
    """A value of a request has no form in JSON: the message names the field and the value. Nothing was sent."""


class ConnectionFailedError(TrdError):
    """There was no response. Unless `was_never_sent`, the request may have been received."""

    was_never_sent = False


class TimedOutError(ConnectionFailedError):
    """A response did not arrive in time."""


class UnexpectedAnswerError(TrdError):
    """A response does not have the expected form."""


class DownloadError(TrdError):
    """A downloaded file does not match the manifest or cannot be written, or its folder has files of another
    model."""


class JobFailedError(TrdError):
    """A job ended as failed or cancelled; `code` is the error code of a failed job."""

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class JobPausedError(TrdError):
    """A job that was followed or waited for is paused, until its user resumes it."""


@dataclass(frozen=True)
class Refusal:
    """The error response of the service."""

    status: int
    message: str
    type: str = "unknown"
    code: str = "unknown"
    param: str | None = None
    request_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    """All errors, if a request has several: rows of a file, fields of a spec."""
    retry_after_seconds: float | None = None
    should_retry: bool | None = None
    """Whether the service recommends a retry; None if it does not say."""


class ApiError(TrdError):
    """The service refused a request."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, hint=_HINTS.get(refusal.code))
        self.refusal = refusal
        self.status = refusal.status
        self.code = refusal.code
        """The stable error code: programs branch on it."""
        self.param = refusal.param
        """The field, parameter or header that caused the error."""
        self.request_id = refusal.request_id
        """The id of the request in the service's log."""
        self.errors = refusal.errors
        """All errors, if the request has several."""


class InvalidRequestError(ApiError):
    """A value was refused: the message names the field, the value and the remedy."""


class AuthenticationError(ApiError):
    """The key is missing or unknown."""


class PermissionDeniedError(ApiError):
    """The key lacks the scope."""


class NotFoundError(ApiError):
    """The object does not exist, or belongs to another owner."""


class ConflictError(ApiError):
    """The state of the object does not allow the request."""


class TooManyError(ApiError):
    """Too many requests of the key, or a quota of its owner is used up."""


class ServerError(ApiError):
    """A defect of the service, or something that it needs is not available."""


_KEY_HINT = "set TRD_API_KEY to a key of this service; `trd up` prints its own"

_HINTS = {
    "missing_api_key": _KEY_HINT,
    "invalid_api_key": _KEY_HINT,
    "insufficient_scope": "ask an admin for a key with the scope: `trd keys create NAME --scope …`",
    "job_not_found": "`trd jobs` lists yours",
    "dataset_not_found": "`trd datasets list` lists yours; `trd datasets upload FILE` uploads one",
    "dataset_invalid": "nothing of the file was stored; correct it and upload it again",
    "model_not_found": "`trd models` lists the models",
    "checkpoint_not_found": "`trd show JOB` lists its checkpoints",
    "rate_limit_exceeded": "wait, or send fewer requests",
}

_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    429: TooManyError,
}


def api_error(refusal: Refusal) -> ApiError:
    """Return the error for an error response, by its status."""
    if refusal.status >= 500:
        return ServerError(refusal)
    return _BY_STATUS.get(refusal.status, InvalidRequestError)(refusal)
