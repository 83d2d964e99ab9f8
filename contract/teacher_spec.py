"""The teacher: a model, a served model, or the student itself, whose weights may follow the student's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field
from pydantic import Tag as PydanticTag

from contract.strict_model import StrictModel


class ServedTeacher(StrictModel):
    """A teacher behind an OpenAI-compatible server that the operator configured."""

    endpoint: Annotated[str, Field(min_length=1, max_length=100)]
    """Name of the endpoint in the operator's settings, never a URL."""


ModelName = Annotated[str, Field(min_length=1, max_length=500)]

TeacherRef = Annotated[
    Annotated[ModelName, PydanticTag("as_model")] | Annotated[ServedTeacher, PydanticTag("as_endpoint")],
    Discriminator(lambda value: "as_endpoint" if isinstance(value, dict | ServedTeacher) else "as_model"),
]
"""A model by name, like the student, or a served teacher."""


class TeacherUpdateSpec(StrictModel):
    """How the teacher's weights follow the student's, if the student is its own teacher."""

    kind: Literal["frozen", "ema", "periodic"] = "frozen"
    """frozen: the step-0 weights throughout; ema: a moving average of the student's weights; periodic: a copy of the
    student's weights, renewed every ``every_steps`` steps."""
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """For kind ema, at each step: teacher = decay · teacher + (1 − decay) · student."""
    every_steps: Annotated[int, Field(ge=1)] = 100
    """For kind periodic: steps between two copies."""
