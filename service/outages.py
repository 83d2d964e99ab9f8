"""When something that the service needs is away or full: a 503 that may be sent again, not a defect."""

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
    """The refusal of a request that failed for one; None for a defect. Addresses and statements are not shown."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        is_full = any(words in str(error).lower() for words in _FULL_DATABASE)
        return _full("database") if is_full else _away("database")
    if isinstance(error, StoredFileMissingError):
        message = "a file that the database knows is not in the storage: tell the operator"
        return _refusal(message, "storage_unavailable")
    if isinstance(error, OSError) and error.errno in _FULL:
        return _full("storage")
    if isinstance(error, OSError) and error.errno in _AWAY:
        return _away("storage")
    return None


def _full(part: str) -> UnavailableError:
    remedy = "nothing was made; delete datasets or jobs, or have the operator free some, and send the request again"
    return _refusal(f"the {part} has no space left: {remedy}", "disk_full")


def _away(part: str) -> UnavailableError:
    remedy = f"send the request again in {RETRY_AFTER_SECONDS} seconds; GET /readyz tells what is away"
    return _refusal(f"the {part} does not answer: {remedy}", f"{part}_unavailable")


def _refusal(message: str, code: str) -> UnavailableError:
    return UnavailableError(message, code=code, headers={"retry-after": str(RETRY_AFTER_SECONDS)})
