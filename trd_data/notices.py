"""`Notice`: something about data, a model or a first round that deserves a look before it costs GPU hours.

A notice never stops anything by itself; a job with ``strict: true`` is refused if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """What was found, how often, one example of it, and what to do about it."""

    code: str
    """Stable name of the finding, such as ``unread_columns``; documented in docs/data.md."""
    message: str
    """What was found, as one or two sentences."""
    remedy: str
    """What the user can do about it."""
    count: int = 1
    """Number of rows, rollouts or parts of a model that it concerns."""
    example: str = ""
    """One of them, shortened to 200 characters."""
    tasks: tuple[str, ...] | None = None
    """Tasks for which it holds; None for all."""
