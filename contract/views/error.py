"""The body of every response that is not a success."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from contract.views import View


class ErrorDetail(View):
    """What went wrong."""

    message: str
    """Names the field, the value and the remedy."""
    type: str
    """The kind of error, one of a few: invalid_request_error, conflict_error, quota_error…"""
    param: str | None
    """The field or parameter at fault."""
    code: str
    """Stable: clients branch on it."""
    errors: list[dict[str, Any]] = Field(default_factory=list)
    """All faults, if a request has several."""


class Error(View):
    """The body of every response that is not a success."""

    error: ErrorDetail
