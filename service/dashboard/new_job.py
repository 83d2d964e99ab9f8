"""The form of a new job, made from the spec's JSON schema. A script sends it to the API."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from contract.job_spec import JobSpec
from service.auth import Submitter
from service.context import Context
from service.dashboard.job import find_job
from service.dashboard.pages import page
from service.dashboard.specs import docstrings, shown, spec_rows
from service.datasets.schemas import dataset_view
from service.models.service import model_view

router = APIRouter(include_in_schema=False)

NUM_DATASETS = 100
_ON_TOP = {"mode", "student", "teacher", "dataset", "task", "preset", "name", "tags", "metadata"}
"""Fields with a separate place in the form, or only in the JSON below it."""
MODES = {
    "trd": "The teacher refines the student's attempts; the student learns from the refined ones.",
    "opd": "The teacher scores the student's own attempts, token by token.",
    "opsd": "The student is its own teacher, who sees the reference solution.",
}
PRESETS = {
    "trd": "Forward KL on the refined trajectory, in the refining context. The default of mode trd.",
    "forward_kl": "Forward KL over the whole vocabulary. The default of opd and opsd.",
    "forward_kl_clip": "The same, with each token's divergence clipped at 0.1.",
    "reverse_kl": "Reverse KL over the whole vocabulary: the student keeps to few modes.",
    "reverse_kl_topk": "Reverse KL over the teacher's 32 likeliest tokens.",
}


@dataclass(frozen=True)
class FormField:
    """An input of the form."""

    path: str
    kind: str
    """number, text, long, choice or toggle."""
    choices: list[str]
    default: str
    value: str
    """What is filled in; empty: the default holds."""
    help: str


@router.get("/ui/new")
def new_job(
    request: Request, context: Context, caller: Submitter, from_job: Annotated[str, Query(max_length=40)] = ""
) -> Response:
    """Show the empty form, or one that is filled in from a job."""
    given: dict[str, str] = {}
    tags: list[str] = []
    rest = ""
    if from_job:
        original = find_job(context, caller, from_job)
        given = {row.path: row.value for row in spec_rows(original.spec) if not row.is_default}
        tags, rest = original.tags, _rest(original.spec, given)
    rows, _ = context.datasets.page(caller.owner, None, NUM_DATASETS)
    groups: dict[str, list[FormField]] = {}
    for field in _fields(given):
        group = field.path.partition(".")[0] if "." in field.path else "run"
        groups.setdefault(group, []).append(field)
    models = [model for model in map(model_view, context.models.all()) if model.refusal is None]
    return page(
        request,
        "new_job.html",
        given=given,
        rest=rest,
        from_job=from_job,
        tags=", ".join(tags),
        datasets=[dataset_view(row) for row in rows],
        models=models,
        modes=MODES,
        presets=PRESETS,
        tasks=JobSpec.model_json_schema()["properties"]["task"]["enum"],
        groups={"run": groups.pop("run"), **groups},
    )


def _fields(given: Mapping[str, str]) -> Iterator[FormField]:
    schema = JobSpec.model_json_schema()
    for path, part in _leaves(schema, schema["$defs"]):
        if path.partition(".")[0] in _ON_TOP:
            continue
        kind, choices = _kind(path, part, schema["$defs"])
        if kind:
            default = shown(part["default"]) if part.get("default") is not None else ""
            yield FormField(path, kind, choices, default, given.get(path, ""), docstrings().get(path, ""))


def _leaves(schema: Mapping[str, Any], defs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, schema) of each field; an object's fields are yielded in its place."""
    for name, part in schema.get("properties", {}).items():
        target = _target(part, defs)
        if "properties" in target:
            yield from _leaves(target, defs, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


def _target(part: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that a part refers to, or the part itself."""
    for one in (part, *part.get("anyOf", []), *part.get("allOf", [])):
        if "$ref" in one:
            target: Mapping[str, Any] = defs[one["$ref"].rpartition("/")[2]]
            return target
    return part


def _kind(path: str, part: Mapping[str, Any], defs: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return which input suits a field, and its choices; an empty kind: it is left to the JSON."""
    options = [one for one in part.get("anyOf", [part]) if one.get("type") != "null"]
    target = _target(part, defs)
    if "enum" in target:
        return "choice", [str(one) for one in target["enum"]]
    types = {one.get("type") for one in options}
    for option in options:
        if "enum" in option:
            return "choice", [str(one) for one in option["enum"]]
    if types == {"boolean"}:
        return "toggle", ["true", "false"]
    if types <= {"integer", "number"}:
        return "number", []
    if types == {"string"}:
        return ("long" if path.startswith("prompts.") else "text"), []
    return "", []


def _rest(spec: Mapping[str, Any], given: Collection[str]) -> str:
    """Return, as JSON, what the inputs cannot hold of the fields of a job that is started again."""
    by_hand = {"mode", "student", "teacher", "dataset", "task", "preset", "name", "tags"}
    held = {field.path for field in _fields({})} | by_hand
    rest = _without(spec, lambda path: path not in given or path in held)
    return json.dumps(rest, indent=2) if rest else ""


def _without(document: Mapping[str, Any], is_left_out: Callable[[str], bool], prefix: str = "") -> dict[str, Any]:
    """Return an object without the leaves of these paths. The names of metadata may have dots, so that no path leads
    back to a leaf."""
    kept = {}
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            if inner := _without(value, is_left_out, f"{prefix}{name}."):
                kept[name] = inner
        elif not is_left_out(f"{prefix}{name}"):
            kept[name] = value
    return kept
