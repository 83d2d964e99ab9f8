"""Turn pydantic's validation errors into messages that name the field, the value and the remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

MAX_PROBLEMS = 100
"""Most problems of one request. A body may have a wrong field every few bytes."""
MAX_SUGGESTIONS = 10
"""Most suggestions of one request: each compares the field with all that are known."""

MAX_NAME = 100
"""Characters of a field's name that are shown: it may be as long as the body."""


@dataclass(frozen=True)
class FieldProblem:
    """One thing that is wrong with a request."""

    param: str
    """Dotted path of the field, empty for the whole body."""
    message: str
    """Field, value and remedy, in one sentence."""


def field_problems(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> list[FieldProblem]:
    """Return the first `MAX_PROBLEMS` problems of a `ValidationError` in the order of the fields, one per field."""
    problems: dict[str, FieldProblem] = {}
    for details in errors:
        problem = _describe(details, model, suggests=len(problems) < MAX_SUGGESTIONS)
        problems.setdefault(problem.param, problem)
        if len(problems) == MAX_PROBLEMS:
            break
    return list(problems.values())


def _describe(details: ErrorDetails, model: type[BaseModel], *, suggests: bool) -> FieldProblem:
    context = details.get("ctx", {})
    if details["type"] == "contradiction":
        return FieldProblem(str(context["param"]), details["msg"])
    param = _dotted(details, model)
    if details["type"] == "extra_forbidden":
        suggestion = _suggestion(details["loc"], model) if suggests else ""
        return FieldProblem(param, f"{param}: unknown field{suggestion}")
    if details["type"] == "missing":
        return FieldProblem(param, f"{param}: this field is required")
    message = "Input should be an object" if details["type"] in _NO_OBJECT else details["msg"]
    reason = message[:1].lower() + message[1:]
    return FieldProblem(param, f"{param or 'body'} = {_shown(details['input'])}: {reason}")


_NO_OBJECT = frozenset({"dict_type", "model_type", "model_attributes_type"})
"""Errors whose own messages name Python's types."""


def _dotted(details: ErrorDetails, model: type[BaseModel]) -> str:
    """Return the path without the tags that pydantic adds for the members of a union."""
    parts: list[str] = []
    models = [model]
    is_key = False
    names_a_key = details["type"] in ("extra_forbidden", "missing")
    for position, step in enumerate(details["loc"]):
        known = [m for m in models if step in m.model_fields]
        is_last = position == len(details["loc"]) - 1
        if known or is_key or isinstance(step, int) or (is_last and names_a_key):
            parts.append(_cut(str(step), MAX_NAME))
        is_key = any(_is_mapping(m.model_fields[str(step)].annotation) for m in known)
        if known:
            models = [n for m in known for n in _nested_models(m, str(step))]
    return ".".join(parts)


def _nested_models(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    leaves = _leaves(model.model_fields[field].annotation)
    return [leaf for leaf in leaves if isinstance(leaf, type) and issubclass(leaf, BaseModel)]


def _leaves(annotation: Any) -> Iterator[Any]:
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _leaves(argument)


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(map(_is_mapping, get_args(annotation)))


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    models = [model]
    for step in location[:-1]:
        known = [m for m in models if step in m.model_fields]
        models = [n for m in known for n in _nested_models(m, str(step))] or models
    names = list(dict.fromkeys(name for m in models for name in m.model_fields))
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(names)}"


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return _cut(text, 80)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
