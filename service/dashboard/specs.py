"""Specs as rows of fields: with their docstrings, and with what differs from the defaults or between jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from contract.job_spec import JobSpec

_REQUIRED = {"mode", "student", "dataset", "teacher"}
_FOR_PEOPLE = {"name", "tags", "metadata"}


@dataclass(frozen=True)
class SpecRow:
    """One field of a spec."""

    path: str
    value: str
    default: str
    is_default: bool
    help: str
    """The field's docstring."""


def spec_rows(spec: Mapping[str, Any]) -> list[SpecRow]:
    """Return the fields of a resolved spec, each compared with its default in a job of the same mode."""
    defaults = dict(leaves(_defaults_like(spec)))
    rows = []
    for path, value in leaves(spec):
        is_default = path.partition(".")[0] not in _REQUIRED and (path in defaults and defaults[path] == value)
        default = shown(defaults[path]) if path in defaults else ""
        rows.append(SpecRow(path, shown(value), default, is_default, docstrings().get(path, "")))
    return rows


def differences(specs: list[Mapping[str, Any]]) -> list[tuple[str, list[str], str]]:
    """Return (path, value in each spec, docstring) of the fields that differ, without names and tags."""
    flat = [dict(leaves(spec)) for spec in specs]
    paths = list(dict.fromkeys(path for one in flat for path in one))
    rows = []
    for path in paths:
        values = [one.get(path) for one in flat]
        if path.partition(".")[0] not in _FOR_PEOPLE and any(value != values[0] for value in values):
            rows.append((path, [shown(value) for value in values], docstrings().get(path, "")))
    return rows


def leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of everything that is no object."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """Write a value as in a spec."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@cache
def docstrings() -> dict[str, str]:
    """Return the docstring of each field of a spec by its path."""
    return dict(_docstrings(JobSpec, ""))


def _docstrings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", (field.description or "").replace("``", "")
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _docstrings(inner, f"{prefix}{name}.")


def _defaults_like(spec: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: spec[name] for name in (*_REQUIRED, "preset") if spec.get(name) is not None}
    try:
        return JobSpec.model_validate(given).resolved().model_dump(mode="json")
    except ValidationError:  # a spec of another version
        return {}
