"""Fills an attempt's folder before the child starts: datasets, the spec, the checkpoint to resume from."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contract.database import Database
from contract.events import notice
from contract.job_spec import JobSpec
from contract.settings import make_private_folder
from contract.spec_problems import field_problems
from contract.storage import ContentChangedError
from contract.tracing import tracer
from worker import leftovers, repository
from worker.attempt import Attempt
from worker.dataset_folders import stage_path
from worker.engine_spec import dataset_ids, engine_document, server_paths
from worker.failures import JobFailedError, file_failure_code, public_text
from worker.manifest import CheckpointCorruptError, fetch_checkpoint
from worker.repository import StoredCheckpoint


@dataclass(frozen=True)
class Staged:
    """The inputs of an attempt."""

    spec: JobSpec
    resumed_step: int | None
    """Step of the checkpoint in ``resume/``; None if the run starts from the beginning."""


@tracer.start_as_current_span("stage inputs")
def stage(attempt: Attempt) -> Staged:
    """Make the attempt's folder and everything that the child reads in it.

    Raises `JobFailedError` with a reason for the user, and `LeaseLostError`.
    """
    spec = _spec(attempt)
    folder = attempt.folder
    try:
        shutil.rmtree(folder, ignore_errors=True)
        make_private_folder(folder)
        leftovers.collect(attempt.database, attempt.storage, attempt.job_id, before_attempt=attempt.number)
        datasets = {dataset_id: _stage_dataset(attempt, dataset_id) for dataset_id in dataset_ids(spec)}
        for number, path in enumerate(server_paths(spec)):
            staged_path = stage_path(path, attempt.settings.dataset_roots, folder / f"dataset-{number}")
            datasets[path] = {"path": staged_path}
        resumed_step = _stage_checkpoint(attempt)
        with attempt.database.read() as session:
            pass_tokens = repository.max_pass_tokens(session, attempt.job_id)
        settings = attempt.settings
        document = engine_document(
            spec, attempt.slot.catalog(), datasets, settings.teacher_endpoints, settings.sampler_pools
        )
        document["max_pass_tokens"] = pass_tokens
        (folder / "spec.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        message = f"The job's files could not be fetched: {public_text(error)}"
        raise JobFailedError(file_failure_code(error), message) from error
    return Staged(spec, resumed_step)


def _spec(attempt: Attempt) -> JobSpec:
    """Return the job's spec, which another version of the service may have accepted."""
    try:
        return JobSpec.model_validate(attempt.lease.spec)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        problems = "; ".join(problem.message for problem in field_problems(errors, JobSpec))
        # The service knows the field, so it is newer. Another worker may be, too.
        code = "worker_outdated" if any(found["type"] == "extra_forbidden" for found in errors) else "invalid_spec"
        raise JobFailedError(code, f"this worker's version does not accept the spec: {problems}") from error


def _stage_dataset(attempt: Attempt, dataset_id: str) -> dict[str, Any]:
    with attempt.database.read() as session:
        dataset = repository.find_dataset(session, dataset_id)
    if dataset is None:
        raise JobFailedError("dataset_invalid", f"dataset {dataset_id} was deleted before the job could read it")
    path = attempt.folder / dataset_id  # the engine recognises the format by the content
    try:
        attempt.storage.fetch(dataset.storage_key, path, sha256=dataset.sha256)
    except FileNotFoundError as error:
        message = f"the file of dataset {dataset_id} is missing in the storage; upload the dataset again"
        raise JobFailedError("dataset_invalid", message) from error
    except ContentChangedError as error:
        message = f"the file of dataset {dataset_id} differs from the upload: {error}"
        raise JobFailedError("dataset_changed", message) from error
    return {"path": str(path), "columns": dataset.columns or {}, "references_judged": True}


def _stage_checkpoint(attempt: Attempt) -> int | None:
    """Fetch the newest checkpoint that verifies into ``resume/``; return its step, or None if the job has none."""
    target = attempt.folder / "resume"
    with attempt.database.read() as session:
        checkpoints = repository.list_checkpoints(session, attempt.job_id)
    corrupt: list[StoredCheckpoint] = []
    for checkpoint in checkpoints:
        try:
            fetch_checkpoint(
                attempt.storage, checkpoint.storage_prefix, target, manifest_sha256=checkpoint.manifest_sha256
            )
        except CheckpointCorruptError as error:
            shutil.rmtree(target, ignore_errors=True)
            message = f"The checkpoint of step {checkpoint.step} does not verify and is skipped: {error}"
            attempt.record(notice("warn", "checkpoint_corrupt", message, step=checkpoint.step))
            corrupt.append(checkpoint)
            continue
        with attempt.write() as session:
            repository.remove_checkpoints(session, corrupt)  # files stay until the next attempt or the job's end
            repository.record_resume(session, attempt.lease, checkpoint.step)
        return checkpoint.step
    if checkpoints:
        # All rows stay: the storage may be unreachable, or another one.
        raise JobFailedError("checkpoint_corrupt", f"none of the job's {len(checkpoints)} checkpoints verifies")
    return None


KEPT_FILES = ("spec.json", "engine.log", "run/events.jsonl")
"""Small files that help to understand a failure."""

KEPT_SECONDS = 14 * 86_400.0
"""How long these are kept after the attempt's end."""


def clear(folder: Path) -> None:
    """Remove the folder's contents except `KEPT_FILES`, after the attempt has ended. Concurrent calls are safe."""
    run_dir = folder / "run"
    kept = {run_dir, *(folder / name for name in KEPT_FILES)}
    for path in [*folder.glob("*"), *run_dir.glob("*")]:
        if path in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def clear_dead_attempts(database: Database, scratch_dir: Path) -> None:
    """Clear the folders of attempts whose workers were killed on this machine, and remove those that ended long ago.

    The folders are listed before the attempts: one that another worker here begins meanwhile is not in the list.
    """
    folders = list(scratch_dir.glob("*/attempt-*"))
    with database.read() as session:
        alive = repository.running_attempts(session, {folder.parent.name for folder in folders})
    oldest = time.time() - KEPT_SECONDS
    for folder in folders:
        if (folder.parent.name, int(folder.name.removeprefix("attempt-"))) in alive:
            continue
        with suppress(FileNotFoundError):  # another worker was faster
            if folder.stat().st_mtime > oldest:
                clear(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # the job's folder may have another attempt's
                    folder.parent.rmdir()
