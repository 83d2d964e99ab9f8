"""Values in a query string, and the pages that they select.

Lists are keyset pages: ``after`` names the last object seen, so pages stay right while rows come and go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Query
from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

from contract.views import MAX_PAGE

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


def cut(rows: Sequence[Item], limit: int) -> tuple[Sequence[Item], bool]:
    """Return a page of rows that were fetched with one more than `limit`, and whether more follow."""
    return rows[:limit], len(rows) > limit
