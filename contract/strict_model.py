"""The base of every part of a spec, which refuses unknown fields and wrong types, and the error if two parts clash."""

from __future__ import annotations

import re

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def _without_controls(text: str) -> str:
    found = _CONTROLS.search(text)
    if found is not None:
        raise PydanticCustomError(
            "control_character",
            "has the control character {shown} at place {place}; remove it",
            {"shown": f"U+{ord(found[0]):04X}", "place": found.start() + 1},
        )
    return text


WITHOUT_CONTROLS = AfterValidator(_without_controls)
"""Annotation of text on one line that people see in terminals: it has neither control characters nor those that reverse
text. After its other constraints, which would otherwise have other messages."""


class StrictModel(BaseModel):
    """Unknown keys are refused; values are checked again when assigned; NaN and infinity never pass."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, str_strip_whitespace=True
    )


def contradiction(param: str, value: object, reason: str, remedy: str) -> PydanticCustomError:
    """Make a cross-field error; `contract.spec_problems` reads the parameter's name from its context."""
    shown = "null" if value is None else str(value)
    return PydanticCustomError(
        "contradiction",
        "{param} = {value}: {reason}; {remedy}",
        {"param": param, "value": shown, "reason": reason, "remedy": remedy},
    )
