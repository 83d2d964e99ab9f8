"""The mapping from the job spec in the database to the spec that the engine reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from contract.dataset_ref import GeneratedDataset, HubDataset, PathDataset
from contract.job_spec import JobSpec
from contract.model_catalog import CatalogEntry
from contract.server_groups import ENDPOINTS_VARIABLE, POOLS_VARIABLE, SamplerPool, ServerGroup, TeacherEndpoint
from contract.teacher_spec import ServedTeacher
from worker.failures import JobFailedError

Known = TypeVar("Known")
_SAME_IN_BOTH = (
    "mode",
    "task",
    "loss",
    "sampling",
    "refine",
    "prompts",
    "lora",
    "teacher_update",
    "teacher_precision",
    "optim",
    "precision",
    "rounds",
    "samples_per_prompt",
    "checkpoints",
    "diagnosis",
    "devices",
    "seed",
    "strict",
)


def engine_document(
    spec: JobSpec,
    catalog: Mapping[str, CatalogEntry],
    datasets: Mapping[str, Mapping[str, Any]],
    endpoints: Mapping[str, TeacherEndpoint],
    pools: Mapping[str, SamplerPool],
) -> dict[str, Any]:
    """Return the engine's document for a resolved spec; raises `JobFailedError`.

    A hub model is written ``owner/name@revision``; the engine downloads it. `datasets` maps each uploaded dataset of
    the spec, and each path on the server, to the local ``path`` and, of an upload, its ``columns``. Servers' keys
    stay in the environment; the document names the variables.
    """
    document = spec.model_dump(mode="json")
    for part in ("sampling", "refine"):
        if (name := document[part]["pool"]) is not None:
            document[part]["pool"] = {
                "name": name,
                **_servers(_configured("sampler pool", name, pools, POOLS_VARIABLE)),
            }
    evaluation = document["evaluation"]
    if spec.evaluation.dataset is not None:
        evaluation["dataset"] = _data_source(spec.evaluation.dataset, datasets)
    return {
        **{name: document[name] for name in _SAME_IN_BOTH},
        "student": _model_source(spec.student, catalog),
        "student_name": spec.student,
        "teacher": engine_source(spec.teacher, catalog, endpoints),
        "teacher_name": spec.teacher if isinstance(spec.teacher, str) else None,
        "dataset": _data_source(spec.dataset, datasets),
        "evaluation": evaluation,
    }


def dataset_ids(spec: JobSpec) -> list[str]:
    """Return the ids of the uploaded datasets that the spec names."""
    return list(dict.fromkeys(ref for ref in (spec.dataset, spec.evaluation.dataset) if isinstance(ref, str)))


def server_paths(spec: JobSpec) -> list[str]:
    """Return the paths of datasets on the server that the spec names."""
    named = (spec.dataset, spec.evaluation.dataset)
    return list(dict.fromkeys(ref.path for ref in named if isinstance(ref, PathDataset)))


def engine_source(
    name: str | ServedTeacher | None, catalog: Mapping[str, CatalogEntry], endpoints: Mapping[str, TeacherEndpoint]
) -> str | dict[str, Any] | None:
    """Return what the engine loads for a model of the spec; raises `JobFailedError`."""
    if isinstance(name, ServedTeacher):
        endpoint = _configured("teacher endpoint", name.endpoint, endpoints, ENDPOINTS_VARIABLE)
        return {"endpoint": name.endpoint, "model": endpoint.model, "api": endpoint.api, **_servers(endpoint)}
    return None if name is None else _model_source(name, catalog)


def _configured(what: str, name: str, known: Mapping[str, Known], variable: str, code: str = "invalid_spec") -> Known:
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise JobFailedError(code, f"{what} {name!r} is not in this worker's {variable}; it has: {names}")
    return known[name]


def _servers(group: ServerGroup) -> dict[str, Any]:
    return {"base_url": group.url, **group.model_dump(mode="json", include=ServerGroup.model_fields.keys() - {"url"})}


def _model_source(name: str, catalog: Mapping[str, CatalogEntry]) -> str:
    entry = _configured("model", name, catalog, "TRD_MODELS", "model_not_found")
    return entry.source if entry.revision is None else f"{entry.source}@{entry.revision}"


def _data_source(
    reference: str | HubDataset | PathDataset | GeneratedDataset, datasets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    if isinstance(reference, str):
        return dict(datasets[reference])
    given = datasets[reference.path] if isinstance(reference, PathDataset) else {}
    return {**reference.model_dump(mode="json", exclude_none=True), **given}
