"""Lists are keyset pages: ``after`` names the last object seen, so that pages stay right while rows come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query

from contract.views.page import MAX_PAGE
from service.query_types import DECIMAL

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most objects in the page."), DECIMAL]


def cut(rows: Sequence[Any], limit: int) -> tuple[Sequence[Any], bool]:
    """A page of rows that were fetched with one more than `limit`, and whether more follow."""
    return rows[:limit], len(rows) > limit
