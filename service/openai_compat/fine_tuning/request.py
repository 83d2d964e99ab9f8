"""What the `openai` client may send to make a job, in its own words."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from contract.dataset_ref import DatasetRef
from contract.job_spec import Mode
from contract.strict_model import contradiction
from contract.teacher_spec import ModelName

_TYPES = ", ".join(Mode)
_EXAMPLE = '{"type": "trd", "trd": {"teacher": …}}'


class _Words(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Hyperparameters(_Words):
    """The three that the client knows; ``"auto"`` and null take this service's default."""

    batch_size: int | Literal["auto"] | None = None
    """``optim.batch_size``: trajectories in one optimizer step."""
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"] | None = None
    """``optim.learning_rate`` is this times its default, 5e-6."""
    n_epochs: int | Literal["auto"] | None = None
    """``optim.epochs``: passes over a round's trajectories."""


class MethodFields(_Words):
    """Any field of a job spec that has no other place in the request: teacher, loss, sampling, lora…"""

    model_config = ConfigDict(extra="allow")

    hyperparameters: Hyperparameters | None = None
    """Where the client puts them now; beside the method is their older place."""


class Method(_Words):
    """How to train. The object named like the type holds the method's fields."""

    type: Mode
    opd: MethodFields | None = None
    opsd: MethodFields | None = None
    trd: MethodFields | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_known(cls, value: object) -> object:
        if value not in tuple(Mode):
            raise contradiction("method.type", str(value)[:80], "this service distils", f"choose one of {_TYPES}")
        return value

    @model_validator(mode="after")
    def _fields_fit_type(self) -> Self:
        for name in Mode:
            if name is not self.type and getattr(self, name) is not None:
                raise contradiction(
                    f"method.{name}", "{…}", f"the type is {self.type}", f"put its fields in {self.type}"
                )
        return self

    @property
    def fields(self) -> MethodFields:
        """The fields of the method in force."""
        given: MethodFields | None = getattr(self, self.type)
        return given or MethodFields()


class FineTuningRequest(BaseModel):
    """The body of ``POST /v1/fine_tuning/jobs``. More keys (``extra_body``) are fields of a job spec too."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    model: ModelName
    """The student."""
    training_file: DatasetRef
    """The dataset: a file's id."""
    validation_file: DatasetRef | None = None
    """``evaluation.dataset``; without it a share of the training problems is held out."""
    method: Method
    hyperparameters: Hyperparameters | None = None
    seed: int | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The job's name, and a part of its model's."""
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None
    """``integrations`` of the spec, in OpenAI's form ``{"type": "wandb", "wandb": {"project": …}}`` or in our own."""

    @model_validator(mode="before")
    @classmethod
    def _names_a_method(cls, document: Any) -> Any:
        if isinstance(document, dict) and document.get("method") is None:
            reason = "OpenAI's default is supervised, and this service distils"
            raise contradiction("method", None, reason, f"send {_EXAMPLE}; the types are {_TYPES}")
        return document

    @property
    def native_integrations(self) -> list[dict[str, Any]]:
        """The trackers in the form of a job spec."""
        return [_native(integration) for integration in self.integrations or ()]


def _native(integration: dict[str, Any]) -> dict[str, Any]:
    """Move the fields of the object that is named like the type, as OpenAI writes them, beside the type."""
    inner = integration.get(str(integration.get("type")))
    if not isinstance(inner, dict):
        return integration
    beside = {name: value for name, value in integration.items() if name != integration["type"]}
    return {**inner, **beside}
