"""Lists are keyset pages: ``after`` names the last object seen, so that pages stay right while rows come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel

from service.query_types import DECIMAL

MAX_PAGE = 100

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most objects in the page."), DECIMAL]

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """Part of a list. The next part begins ``after`` the last object of this one."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


def cut(rows: Sequence[Any], limit: int) -> tuple[Sequence[Any], bool]:
    """A page of rows that were fetched with one more than `limit`, and whether more follow."""
    return rows[:limit], len(rows) > limit
