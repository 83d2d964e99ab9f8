"""One byte range of a file (RFC 9110), with which a client continues a broken download."""

from __future__ import annotations

import re
from collections.abc import Mapping

from service.errors import RangeError

_SINGLE = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$", re.ASCII)


def requested_range(headers: Mapping[str, str], num_bytes: int, etag: str) -> range | None:
    """Return the requested part of the file; None for all of it.

    Several ranges at once, and units other than bytes, are not served: the whole file is, as the RFC
    allows. So is a range under an ``If-Range`` that names another version. Raises `RangeError` for a range
    that the file does not have.
    """
    match = _SINGLE.match(headers.get("range", "").replace(" ", ""))
    if match is None or headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, num_bytes - int(last)), num_bytes
    else:
        start, stop = int(first), min(int(last) + 1, num_bytes) if last else num_bytes
    if first and last and int(last) < int(first):
        return None  # not a range at all
    if start >= stop:
        raise RangeError(
            f"Range = {headers['range']}: the file has {num_bytes} bytes",
            param="Range",
            headers={"content-range": f"bytes */{num_bytes}"},
        )
    return range(start, stop)
