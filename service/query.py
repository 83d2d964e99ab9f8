"""What clients send: the base class of bodies and query strings, values in a query string, and the pages that they
select.

Lists are keyset pages: ``after`` names the last object seen, so pages stay right while rows come and go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from fastapi import Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

from contract.views import MAX_PAGE

_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[-+]?[\d.]+")
_INTEGER = re.compile(r"[+-]?[0-9]+")

Item = TypeVar("Item")


def _refuse_other_spellings(value: object) -> object:
    """Refuse ``2.0`` and ``1_0``, which pydantic would read as integers and other parsers would not."""
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise PydanticKnownError("int_parsing")
    return value


DECIMAL = BeforeValidator(_refuse_other_spellings)
"""Last in an integer's annotation, after its bounds: an integer is written in decimal digits."""

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most objects in the page."), DECIMAL]


def _no_number(value: object) -> object:
    """Refuse a number, which pydantic would take for seconds since the epoch; the document does not say that."""
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        raise ValueError("must be a time, for example 2026-01-31T12:00:00Z")
    return value


def _within_reach(value: datetime) -> datetime:
    """Move a time into the range of possible creation times: at the calendar's ends another time zone or a millisecond
    more fails."""
    if _EARLIEST.year < value.year < _LATEST.year:
        return value
    return _EARLIEST if value.year <= _EARLIEST.year else _LATEST


Moment = Annotated[AwareDatetime, BeforeValidator(_no_number), AfterValidator(_within_reach)]
"""A time with a time zone."""


class RequestModel(BaseModel):
    """Base class of bodies and query strings, which refuse unknown fields."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class PageQuery(RequestModel):
    """Query string of a list: filters of a subclass, which combine, and the page."""

    after: Annotated[str, Field(max_length=60)] | None = None
    """Id of the last object of the page before."""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE), DECIMAL] = 20
    """Most objects in the page."""


def cut(rows: Sequence[Item], limit: int) -> tuple[Sequence[Item], bool]:
    """Return a page of rows that were fetched with one more than `limit`, and whether more follow."""
    return rows[:limit], len(rows) > limit
