"""Failures of the database or the storage: a 503 that the client may retry, not a defect."""

from __future__ import annotations

import errno

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from contract.storage import StoredFileMissingError
from service.errors import UnavailableError

RETRY_AFTER_SECONDS = 5

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_AWAY = frozenset({errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT})
_FULL_DATABASE = ("database or disk is full", "no space left on device", "disk quota exceeded")


def outage(error: BaseException) -> UnavailableError | None:
    """Return the error for a request that failed for an outage; None for a defect. Shows no addresses or statements."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        is_full = any(words in str(error).lower() for words in _FULL_DATABASE)
        return _full("database") if is_full else _away("database")
    if isinstance(error, StoredFileMissingError):
        message = "a file of this object is missing in the storage; inform the operator"
        return _refusal(message, "storage_unavailable")
    if isinstance(error, OSError) and error.errno in _FULL:
        return _full("storage")
    if isinstance(error, OSError) and error.errno in _AWAY:
        return _away("storage")
    return None


def _full(part: str) -> UnavailableError:
    remedy = "nothing was created; delete datasets or jobs, or have the operator free space, and send the request again"
    return _refusal(f"the {part} has no space left: {remedy}", "disk_full")


def _away(part: str) -> UnavailableError:
    remedy = f"send the request again in {RETRY_AFTER_SECONDS} seconds; GET /readyz shows what is unavailable"
    return _refusal(f"the {part} does not respond: {remedy}", f"{part}_unavailable")


def _refusal(message: str, code: str) -> UnavailableError:
    return UnavailableError(message, code=code, headers={"retry-after": str(RETRY_AFTER_SECONDS)})
