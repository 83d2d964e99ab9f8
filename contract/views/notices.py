"""Notices: findings that deserve a look before they cost GPU hours."""

from __future__ import annotations

from contract.views import View


class NoticeView(View):
    """Something that was found in the data, the model or the first round of a job."""

    code: str
    """Stable name of the finding, such as unread_columns."""
    message: str
    """What was found."""
    remedy: str
    """What to do about it."""
    count: int = 1
    """Number of rows, rollouts or parts of a model that it concerns."""
    example: str = ""
    """One of them, shortened."""
    tasks: list[str] | None = None
    """Tasks for which it holds; null for all."""
