"""What every part of a spec is made of: a model that takes no nonsense, and the error where two parts disagree."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    """Unknown keys are refused; values are checked again when assigned; NaN and infinity never pass."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, str_strip_whitespace=True
    )


def contradiction(param: str, value: object, reason: str, remedy: str) -> PydanticCustomError:
    """A cross-field error; `contract.spec_problems` reads the parameter's name from its context."""
    shown = "null" if value is None else str(value)
    return PydanticCustomError(
        "contradiction",
        "{param} = {value}: {reason}; {remedy}",
        {"param": param, "value": shown, "reason": reason, "remedy": remedy},
    )
