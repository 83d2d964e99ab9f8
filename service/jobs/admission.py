"""Admission: may this job be queued here?

Checks a spec against the operator's models, limits and allow-lists and against the caller's datasets, and resolves
it. Reads JSON files of the models; never opens a transaction and writes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import Connection

from contract.dataset_ref import DatasetRef, GeneratedDataset, HubDataset, PathDataset
from contract.job_spec import JobSpec
from contract.messages import queue_name
from contract.model_catalog import vocabulary_difference
from contract.teacher_spec import ServedTeacher
from contract.views import NoticeView
from service.datasets.repository import Size, first_without_solution
from service.errors import InvalidRequestError, QuotaError, refusal
from service.jobs import repository
from service.jobs.served_teachers import fit_loss
from service.models.budgets import contexts, fit_budgets
from service.models.service import CatalogModel, ModelCatalog
from service.settings import Settings

COUNT_SECONDS = 60.0
"""Seconds for which a count of stored specs is used."""


@dataclass(frozen=True)
class Fitted:
    """A job that the operator's models and limits allow."""

    spec: JobSpec
    """Resolved: every default is explicit."""
    notices: list[NoticeView]
    """Notices of its models and settings: what was chosen instead of the defaults, and what does not agree."""

    @property
    def uploads(self) -> list[str]:
        """Ids of the uploaded datasets that the job names."""
        return [data for data in (self.spec.dataset, self.spec.evaluation.dataset) if isinstance(data, str)]


class StoredSpecs:
    """The bytes of each owner's stored specs, counted in the database once in `COUNT_SECONDS` and added up in between.

    With several API processes an owner may exceed the quota by what the others admit within that time.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._counted: dict[str, tuple[float, int]] = {}

    def require_room(self, connection: Connection, owner: str, num_bytes: int) -> None:
        """Count a new spec of the owner; raise `QuotaError` if it is too much."""
        at, stored = self._counted.get(owner, (-math.inf, 0))
        if time.monotonic() - at > COUNT_SECONDS or stored + num_bytes > self._max_bytes:
            at, stored = time.monotonic(), repository.num_spec_bytes(connection, owner)
        if stored + num_bytes > self._max_bytes:
            raise QuotaError(f"the specs of your jobs may have {self._max_bytes} bytes in all; delete some jobs first")
        self._counted[owner] = (at, stored + num_bytes)


class Admissions:
    """Checks a spec against the operator's models and limits. Opens no transaction."""

    def __init__(self, settings: Settings, models: ModelCatalog) -> None:
        self._settings = settings
        self._models = models
        self.stored_specs = StoredSpecs(settings.max_stored_spec_bytes)

    def fit(self, spec: JobSpec) -> Fitted:
        """Return the resolved job; raise `InvalidRequestError` that names the field, the value and the remedy."""
        most = self._settings.max_devices
        if spec.num_devices > most:
            samplers = f"; with its samplers this one needs {spec.num_devices}" if spec.samples_apart else ""
            remedy = f"set devices to {most}" if not spec.samples_apart else "sample on fewer devices, or colocated"
            reason = f"jobs here may use at most {most}{samplers}"
            raise refusal("devices", spec.devices, reason, f"{remedy}, or have the operator raise TRD_MAX_DEVICES")
        known = {*self._settings.queues, queue_name(None, spec.num_devices)}
        if spec.queue is not None and spec.queue not in known:
            raise refusal(
                "queue",
                spec.queue,
                "no worker here serves it",
                f"name one of {', '.join(sorted(known))}, leave it out, or have the operator add it to TRD_QUEUES",
            )
        self._check_reference("dataset", spec.dataset)
        self._check_reference("evaluation.dataset", spec.evaluation.dataset)
        fitted, notices = self._fit_models(spec)
        self._check_pool("sampling.pool", fitted.sampling.pool, fitted.student, spec.devices)
        if isinstance(fitted.teacher, str):
            self._check_pool("refine.pool", fitted.refine.pool, fitted.teacher, spec.devices)
        return Fitted(fitted.resolved(), notices)

    def _fit_models(self, spec: JobSpec) -> tuple[JobSpec, list[NoticeView]]:
        student = self._model("student", spec.student)
        if isinstance(spec.teacher, ServedTeacher):
            return self._fit_served_teacher(spec, student, spec.teacher.endpoint)
        teacher = self._model("teacher", spec.teacher) if spec.teacher is not None else None
        if teacher is not None:
            _check_tokenizers(student, teacher)
        notices = _stop_notices(student, teacher)
        # Workers know models by name; the spec may give a source instead.
        names = {"student": student.entry.name, "teacher": teacher.entry.name if teacher is not None else None}
        needed = contexts(spec, _context_tokens(student), _context_tokens(teacher))
        fitted, lowered = fit_budgets(spec.model_copy(update=names), needed)
        return fitted, [*notices, *lowered]

    def _model(self, field: str, name: str) -> CatalogModel:
        model = self._models.find(name)
        if model is None:
            there = ", ".join(self._models.names()) or "none; the operator's TRD_MODELS is empty"
            raise refusal(field, name, "there is no such model here", f"there are: {there}", "model_not_found")
        if model.refusal is not None:
            raise refusal(field, name, model.refusal, "name another of GET /models", "model_refused")
        return model

    def _fit_served_teacher(self, spec: JobSpec, student: CatalogModel, name: str) -> tuple[JobSpec, list[NoticeView]]:
        """Check what is known here. The engine asks the endpoint for its tokenizer, and for its context if that is not
        configured."""
        endpoint = self._settings.teacher_endpoints.get(name)
        if endpoint is None:
            there = ", ".join(sorted(self._settings.teacher_endpoints)) or "none"
            raise refusal("teacher.endpoint", name, "the operator configured no such endpoint", f"there are: {there}")
        if spec.devices > endpoint.max_concurrency:
            reason = f"teacher endpoint {name} takes {endpoint.max_concurrency} requests at a time, one for each device"
            raise refusal("devices", spec.devices, reason, f"set devices to {endpoint.max_concurrency}, or fewer")
        spec, notices = fit_loss(spec, name, endpoint)
        tokens = endpoint.context_tokens
        if tokens is not None and endpoint.serves_logprobs:
            tokens -= 1  # a server that scores also writes one token
        needed = contexts(spec, _context_tokens(student), tokens)
        spec, lowered = fit_budgets(spec.model_copy(update={"student": student.entry.name}), needed)
        return spec, [*_stop_notices(student, None), *notices, *lowered]

    def _check_pool(self, field: str, name: str | None, model: str, devices: int) -> None:
        if name is None:
            return
        pool = self._settings.sampler_pools.get(name)
        fitting = sorted(name for name, other in self._settings.sampler_pools.items() if other.model == model)
        there = f"pools with {model} are: {', '.join(fitting) or 'none (TRD_SAMPLER_POOLS)'}"
        if pool is None:
            raise refusal(field, name, "the operator configured no such pool", there)
        if pool.model != model:
            raise refusal(field, name, f"its servers have {pool.model}, and the job samples {model}", there)
        if devices > pool.max_concurrency:
            reason = f"pool {name} takes {pool.max_concurrency} requests at a time, one for each device"
            raise refusal("devices", devices, reason, f"set devices to {pool.max_concurrency}, or fewer")

    def _check_reference(self, field: str, data: DatasetRef | None) -> None:
        if isinstance(data, HubDataset):
            allowed = self._settings.hub_datasets
            if data.hub not in allowed:
                there = ", ".join(sorted(allowed)) or "none (TRD_HUB_DATASETS)"
                raise refusal(f"{field}.hub", data.hub, "the operator does not allow it", f"allowed are: {there}")
        elif isinstance(data, PathDataset) and not _is_there(Path(data.path), self._settings.dataset_roots):
            reason = "there is no such file or folder in the roots that the operator allows (TRD_DATASET_ROOTS)"
            raise refusal(f"{field}.path", data.path, reason, "upload the file with POST /datasets")


def check_data(connection: Connection, spec: JobSpec, sizes: Mapping[str, Size]) -> tuple[int | None, int | None]:
    """Check the job's data and return the numbers of problems to train and to evaluate on, None if unknown here.

    `sizes` holds the owner's uploaded datasets by id. Raises `InvalidRequestError`.
    """
    num_problems = _num_problems("dataset", spec.dataset, sizes)
    for field, data in (("dataset", spec.dataset), ("evaluation.dataset", spec.evaluation.dataset)):
        if isinstance(data, str) and data in sizes:
            _require_readable(field, data, spec.task, sizes[data])
    if spec.is_privileged and isinstance(spec.dataset, str) and not sizes[spec.dataset].has_solutions:
        row = first_without_solution(connection, spec.dataset)
        raise refusal(
            "dataset",
            spec.dataset,
            f"{'a row' if row is None else f'row {row}'} has no solution, but a job without a teacher needs a solution "
            "in every row",
            "give each row a solution, or name a teacher",
            "dataset_lacks_solutions",
        )
    if num_problems is not None and num_problems < 1 + spec.evaluation.holds_out:
        raise refusal(
            "evaluation.holdout",
            spec.evaluation.holdout,
            f"no problem is left to train on if one of {num_problems} is held out",
            "set it to 0, or upload more problems",
            "no_training_data",
        )
    if spec.evaluation.dataset is None:
        return num_problems, None
    return num_problems, _num_problems("evaluation.dataset", spec.evaluation.dataset, sizes)


def _require_readable(field: str, dataset_id: str, task: str, size: Size) -> None:
    """Raise `InvalidRequestError` if the task cannot read all rows of an upload: its job would fail at the first."""
    found = size.tasks.get(task)
    if not found or not found["num_refused"]:
        return
    error = found["first_error"]
    others = [name for name, report in size.tasks.items() if not report["num_refused"]]
    raise refusal(
        field,
        dataset_id,
        f"task {task} cannot read {found['num_refused']} of its {size.num_rows} rows; row {error['row']}: "
        f"{error['message']}",
        f"tasks that can read all rows: {', '.join(others) or 'none'}",
        "dataset_invalid",
    )


def data_notices(spec: JobSpec, sizes: Mapping[str, Size]) -> list[NoticeView]:
    """Return what the checks of the job's uploads found that holds for its task."""
    found = []
    for field, data in (("dataset", spec.dataset), ("evaluation.dataset", spec.evaluation.dataset)):
        if not isinstance(data, str) or (field != "dataset" and data == spec.dataset):
            continue
        for notice in map(NoticeView.model_validate, sizes[data].notices):
            if notice.tasks is None or spec.task in notice.tasks:
                where = "" if field == "dataset" else f"{field}: "
                found.append(notice.model_copy(update={"message": where + notice.message}))
    return found


def accepted_notices(fitted: Fitted, sizes: Mapping[str, Size]) -> list[NoticeView]:
    """Return all notices of a job; raise `InvalidRequestError` with them as its errors if it is strict."""
    notices = [*data_notices(fitted.spec, sizes), *fitted.notices]
    if not fitted.spec.strict or not notices:
        return notices
    more = f" (and {len(notices) - 1} more, in errors)" if len(notices) > 1 else ""
    raise InvalidRequestError(
        f"strict = true: {notices[0].code}: {notices[0].message}; {notices[0].remedy}{more}",
        code="strict_notices",
        param="strict",
        errors=[{"param": "strict", **notice.model_dump(mode="json")} for notice in notices],
    )


def _num_problems(field: str, data: DatasetRef, sizes: Mapping[str, Size]) -> int | None:
    if isinstance(data, HubDataset | PathDataset):
        return None
    if isinstance(data, GeneratedDataset):
        return data.size
    if data not in sizes:
        raise refusal(field, data, "there is no such dataset", "GET /datasets lists yours", "dataset_not_found")
    return sizes[data].num_rows


def _is_there(path: Path, roots: Sequence[Path]) -> bool:
    try:
        resolved = path.resolve()  # no link in a root leads out of all roots
        is_inside = path.is_absolute() and any(resolved.is_relative_to(root.resolve()) for root in roots)
        return is_inside and resolved.exists()
    except (OSError, RuntimeError):  # a name that is too long, a folder that may not be read, a ring of links
        return False


def _context_tokens(model: CatalogModel | None) -> int | None:
    return model.facts.context_tokens if model is not None and model.facts is not None else None


def _check_tokenizers(student: CatalogModel, teacher: CatalogModel) -> None:
    if student.facts is None or teacher.facts is None:
        return  # on a hub: the engine compares them
    difference = vocabulary_difference(student.facts, teacher.facts)
    if difference is not None:
        reason = f"its tokenizer is not that of student {student.entry.name}: {difference}"
        raise refusal(
            "teacher", teacher.entry.name, reason, "name a teacher of the student's family", "tokenizer_mismatch"
        )


def _stop_notices(student: CatalogModel, teacher: CatalogModel | None) -> list[NoticeView]:
    """Return what the engine will report of the models' stop tokens; files on a hub are not known here."""
    models = {student.entry.source: ("student", student)}
    if teacher is not None:
        models.setdefault(teacher.entry.source, ("teacher", teacher))
    found = [model.stop_ids.notice(role) for role, model in models.values() if model.stop_ids is not None]
    return [NoticeView(**asdict(notice)) for notice in found if notice is not None]
