"""What scripts branch on. The README lists them; they never change their meaning."""

from __future__ import annotations

from client.errors import (
    AuthenticationError,
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    JobFailedError,
    JobPausedError,
    NotFoundError,
    PermissionDeniedError,
    SettingsError,
    TooManyError,
    TrdError,
)

FAILED = 1
"""Something for which there is no code of its own."""
MISUSED = 2
"""A command that was written wrongly: the parser's own code."""
JOB_FAILED = 3
"""The job failed or was cancelled."""
NOT_FOUND = 4
REFUSED = 5
"""A value, a state or a limit does not allow it."""
NOT_ALLOWED = 6
"""No key, or one that may not."""
UNREACHABLE = 7
JOB_PAUSED = 8
"""The job that was watched is paused."""
INTERRUPTED = 130
"""Ctrl-C, as shells have it."""


class MisusedError(TrdError):
    """An argument of the command has another form."""


class NothingThereError(TrdError):
    """An argument of the command names nothing that is there."""


_BY_ERROR: tuple[tuple[type[TrdError], int], ...] = (
    (JobFailedError, JOB_FAILED),
    (JobPausedError, JOB_PAUSED),
    (MisusedError, MISUSED),
    (NothingThereError, NOT_FOUND),
    (NotFoundError, NOT_FOUND),
    (InvalidRequestError, REFUSED),
    (ConflictError, REFUSED),
    (TooManyError, REFUSED),
    (AuthenticationError, NOT_ALLOWED),
    (PermissionDeniedError, NOT_ALLOWED),
    (SettingsError, NOT_ALLOWED),
    (ConnectionFailedError, UNREACHABLE),
)


def exit_code(error: TrdError) -> int:
    """The code for an error."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), FAILED)
