"""Who teaches: a model, a served one, or the student itself, and how the latter's weights follow it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field
from pydantic import Tag as PydanticTag

from contract.strict_model import StrictModel


class ServedTeacher(StrictModel):
    """A teacher behind an OpenAI-compatible server that the operator configured."""

    endpoint: Annotated[str, Field(min_length=1, max_length=100)]
    """Name of the endpoint in the operator's settings, never a URL."""


def _teacher_kind(value: object) -> str:
    return "as_endpoint" if isinstance(value, dict | ServedTeacher) else "as_model"


ModelName = Annotated[str, Field(min_length=1, max_length=500)]

TeacherRef = Annotated[
    Annotated[ModelName, PydanticTag("as_model")] | Annotated[ServedTeacher, PydanticTag("as_endpoint")],
    Discriminator(_teacher_kind),
]
"""A model as the student is named, or a served one."""


class TeacherUpdateSpec(StrictModel):
    """How the weights of a student that teaches itself follow it."""

    kind: Literal["frozen", "ema", "periodic"] = "frozen"
    """frozen: step 0's for good; ema: a moving average of the student's; periodic: the student's, taken over
    every so many steps."""
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Of kind ema, each step: teacher = decay · teacher + (1 − decay) · student."""
    every_steps: Annotated[int, Field(ge=1)] = 100
    """Of kind periodic."""
