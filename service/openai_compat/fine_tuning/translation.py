"""Translates the `openai` client's requests to job specs, and errors back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from contract.job_spec import JobSpec
from contract.optim_spec import OptimSpec
from service.errors import InvalidRequestError
from service.openai_compat.fine_tuning.request import FineTuningRequest, Hyperparameters

DEFAULT_LEARNING_RATE = OptimSpec().learning_rate
"""What a learning rate multiplier of 1 means."""


@dataclass
class NativeSpec:
    """A job spec's document, and the field of the client's request that each of its fields came from."""

    method: str
    """Where a field belongs that the client did not send: ``method.trd``."""
    document: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """Field of the spec, dotted, to field of the request."""

    def put(self, name: str, value: Any, source: str, *, inside: str | None = None) -> None:
        """Set a field, or with `inside` a field of that object; raise `InvalidRequestError` if it is set already."""
        path = name if inside is None else f"{inside}.{name}"
        if (earlier := self._source_of(name, inside)) is not None:
            raise InvalidRequestError(
                f"{source}: {earlier} sets the same field; send only one of them", code="invalid_spec", param=source
            )
        self.sources[path] = source
        if inside is None:
            self.document[name] = value
        elif isinstance(self.document.setdefault(inside, {}), dict):  # what is no object the spec refuses
            self.document[inside] = {**self.document[inside], name: value}

    def _source_of(self, name: str, inside: str | None) -> str | None:
        """Return the request's field that set this one before, alone or within its whole object."""
        if inside is None:
            return self.sources.get(name)
        if (alone := self.sources.get(f"{inside}.{name}")) is not None:
            return alone
        around = self.document.get(inside)
        return f"{self.sources[inside]}.{name}" if isinstance(around, dict) and name in around else None

    def with_client_names(self, error: InvalidRequestError) -> InvalidRequestError:
        """Return the same error with the field names that the client sent."""
        name = (error.param or "").partition(".")[0]
        if error.param is None or (name not in JobSpec.model_fields and name not in self.sources):
            return error
        problems = [
            {**problem, "param": self._client_param(problem["param"]), "message": self._client_message(problem)}
            for problem in error.errors or ()
            if problem.get("param")
        ]
        return InvalidRequestError(
            self._client_message({"param": error.param, "message": error.message}),
            code=error.code,
            param=self._client_param(error.param),
            errors=problems or None,
        )

    def _client_message(self, problem: Any) -> str:
        param, message = str(problem["param"]), str(problem["message"])
        return self._client_param(param) + message.removeprefix(param) if message.startswith(param) else message

    def _client_param(self, param: str) -> str:
        """Translate the longest part of the field's path that the client sent."""
        known, rest = param, ""
        while known:
            if known in self.sources:
                return self.sources[known] + rest
            known, _, leaf = known.rpartition(".")
            rest = f".{leaf}{rest}"
        return f"{self.method}.{param}"


def native_spec(request: FineTuningRequest) -> NativeSpec:
    """Return the request as a job spec; raise `InvalidRequestError` if it sets a field in two places."""
    kind = request.method.type
    spec = NativeSpec(method=f"method.{kind}")
    for name, value in (request.method.fields.model_extra or {}).items():
        spec.put(name, value, f"method.{kind}.{name}")
    for name, value in (request.model_extra or {}).items():
        spec.put(name, value, name)
    sent = request.model_dump(mode="json")
    spec.put("mode", sent["method"]["type"], "method.type")
    spec.put("student", request.model, "model")
    spec.put("dataset", sent["training_file"], "training_file")
    if request.validation_file is not None:
        spec.put("dataset", sent["validation_file"], "validation_file", inside="evaluation")
    for source, name in (("seed", "seed"), ("suffix", "name"), ("metadata", "metadata")):
        if sent[source] is not None:
            spec.put(name, sent[source], source)
    if request.integrations:
        spec.put("integrations", request.native_integrations, "integrations")
    _put_hyperparameters(spec, request.hyperparameters, "hyperparameters")
    _put_hyperparameters(spec, request.method.fields.hyperparameters, f"method.{kind}.hyperparameters")
    return spec


def _put_hyperparameters(spec: NativeSpec, given: Hyperparameters | None, source: str) -> None:
    if given is None:
        return
    rate = given.learning_rate_multiplier
    if isinstance(rate, float):
        learning_rate = rate * DEFAULT_LEARNING_RATE
        spec.put("learning_rate", learning_rate, f"{source}.learning_rate_multiplier", inside="optim")
    for word, name in (("batch_size", "batch_size"), ("n_epochs", "epochs")):
        value = getattr(given, word)
        if isinstance(value, int):
            spec.put(name, value, f"{source}.{word}", inside="optim")
