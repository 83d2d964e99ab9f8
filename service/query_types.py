"""Values in a query string arrive as text: what each type accepts of it is what the OpenAPI document says."""

from __future__ import annotations

import re

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

_INTEGER = re.compile(r"[+-]?[0-9]+")


def _refuse_other_spellings(value: object) -> object:
    """pydantic alone would also read ``2.0`` and ``1_0``, which other parsers of an integer refuse."""
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise PydanticKnownError("int_parsing")
    return value


DECIMAL = BeforeValidator(_refuse_other_spellings)
"""Last in an integer's annotation, after its bounds: an integer is written in decimal digits."""
