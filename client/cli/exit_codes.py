"""Exit codes for scripts. docs/guide.md lists them; their meaning never changes."""

from __future__ import annotations

from client.errors import (
    AuthenticationError,
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    InvalidValueError,
    JobFailedError,
    JobPausedError,
    NotFoundError,
    PermissionDeniedError,
    SettingsError,
    TooManyError,
    TrdError,
)

FAILED = 1
"""Any error without a more specific code."""
MISUSED = 2
"""Wrong usage of a command: the code of the argument parser."""
JOB_FAILED = 3
"""The job failed or was cancelled."""
NOT_FOUND = 4
REFUSED = 5
"""Refused because of a value, a state or a limit."""
NOT_ALLOWED = 6
"""No key, or a key without the scope."""
UNREACHABLE = 7
JOB_PAUSED = 8
"""The watched job is paused."""
INTERRUPTED = 130
"""Ctrl-C, with the code that shells use."""


class MisusedError(TrdError):
    """An argument of the command has the wrong form."""


class NothingThereError(TrdError):
    """An argument of the command names something that does not exist."""


_BY_ERROR: tuple[tuple[type[TrdError], int], ...] = (
    (JobFailedError, JOB_FAILED),
    (JobPausedError, JOB_PAUSED),
    (MisusedError, MISUSED),
    (NothingThereError, NOT_FOUND),
    (NotFoundError, NOT_FOUND),
    (InvalidRequestError, REFUSED),
    (InvalidValueError, REFUSED),
    (ConflictError, REFUSED),
    (TooManyError, REFUSED),
    (AuthenticationError, NOT_ALLOWED),
    (PermissionDeniedError, NOT_ALLOWED),
    (SettingsError, NOT_ALLOWED),
    (ConnectionFailedError, UNREACHABLE),
)


def exit_code(error: TrdError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), FAILED)
