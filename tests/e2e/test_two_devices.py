"""A job with ``devices: 2`` through service and worker: two gloo processes under torchrun, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.errors import JobFailedError
from examples.local_service import LocalService, local_service
from tests.otlp_collector import Collector, collector
from tests.trd_engine.tiny_runs import write_data
from tests.worker.workbench import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {
    "TRD_MAX_DEVICES": "2",
    "TRD_QUEUES": "trd-default,trd-default-2",
    "TRD_HEARTBEAT_SECONDS": "0.3",  # a pause or cancel is noticed at once
    "TRD_PROGRESS_SECONDS": "0.3",  # and so is a step
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, traces: Collector) -> Iterator[LocalService]:
    settings = {**SETTINGS, **traces.environment}
    with local_service(tmp_path_factory.mktemp("service"), settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def body(service: LocalService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("data"), train=64, heldout=8)
    return {
        "mode": "trd",
        "student": "tiny-student",
        "teacher": "tiny-teacher",
        "dataset": service.client.datasets.upload(data / "train.jsonl").id,
        "task": "exact",
        "devices": 2,
        "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 96},
        "refine": {"max_prompt_tokens": 192, "max_new_tokens": 96},
        "lora": {"rank": 4, "alpha": 8},
        "optim": {"learning_rate": 1e-3, "batch_size": 8},
        "evaluation": {"holdout": 0.1, "k": 2},
        "checkpoints": {"every_steps": 100},
    }


def test_a_job_is_paused_and_resumed_and_outlives_a_killed_process(
    service: LocalService, body: dict[str, Any], traces: Collector
) -> None:
    client = service.client
    often = {"optim": {**body["optim"], "epochs": 3}, "checkpoints": {"every_steps": 1}}
    job = client.jobs.create({**body, **often})
    assert job.spec["queue"] == "trd-default-2"
    _wait_for_step(service, job.id, 2)
    client.jobs.pause(job.id)
    _wait_for_status(service, job.id, "paused")
    stopped_at = client.jobs.get(job.id).step
    assert max(checkpoint.step for checkpoint in client.checkpoints.list(job.id)) == stopped_at
    client.jobs.resume(job.id)
    _wait_for_step(service, job.id, stopped_at + 2)
    os.kill(_process_of_rank(1, job.id), signal.SIGKILL)
    done = client.jobs.wait(job.id, max_seconds=300)
    assert done.status == "succeeded", (done.error, _messages(service, job.id))
    assert done.attempt == 3
    assert done.step == done.num_steps > stopped_at
    (loss,) = client.metrics.list(job.id, names=["loss"])
    assert loss.steps == list(range(1, done.num_steps + 1)), "each step once: none lost, none of both processes"
    _assert_is_traced_from_request_to_steps(traces, job.id, num_steps=done.num_steps)


def _assert_is_traced_from_request_to_steps(traces: Collector, job_id: str, *, num_steps: int) -> None:
    attempts = eventually(
        lambda: (
            len(found := [a for a in traces.named("attempt") if a.attributes["trd.job_id"] == job_id]) == 3 and found
        )
    )
    (submission,) = [span for span in traces.named("submit job") if span.attributes["trd.job_id"] == job_id]
    spans = {span.id: span for span in traces.spans if span.trace_id == submission.trace_id}
    request = spans[submission.parent_id]
    assert (request.process, request.name, request.parent_id) == ("trd-api", "POST /jobs", "")
    assert [attempt.attributes["trd.outcome"] for attempt in attempts] == ["stopped", "failed", "finished"]
    assert [attempt.is_error for attempt in attempts] == [False, True, False]
    of_submission = [span.name for span in spans.values() if span.parent_id == submission.id]
    assert sorted(of_submission) == ["attempt"] * 3 + ["wait in queue"] * 3
    phases = {span.name for span in spans.values() if span.parent_id in {attempt.id for attempt in attempts}}
    assert phases >= {"stage inputs", "preparing", "rollout", "refining", "training", "evaluating", "saving"}
    steps = [span for span in spans.values() if span.name == "step"]
    assert {span.attributes["trd.step"] for span in steps} == set(range(1, num_steps + 1))
    for step in steps:
        phase = spans[step.parent_id]
        assert (phase.process, phase.name) == ("trd-worker", "training")
        assert spans[phase.parent_id] in attempts


def test_a_cancelled_job_keeps_its_checkpoint(service: LocalService, body: dict[str, Any]) -> None:
    client = service.client
    job = client.jobs.create({**body, "optim": {**body["optim"], "epochs": 50}})
    _wait_for_step(service, job.id, 1)
    client.jobs.cancel(job.id)
    _wait_for_status(service, job.id, "cancelled")
    assert max(checkpoint.step for checkpoint in client.checkpoints.list(job.id)) >= 1


def test_a_failure_of_both_processes_is_reported_once(service: LocalService, body: dict[str, Any]) -> None:
    client = service.client
    sampling = {**body["sampling"], "max_prompt_tokens": 1}
    job = client.jobs.create({**body, "sampling": sampling})
    with pytest.raises(JobFailedError) as caught:
        client.jobs.wait(job.id, max_seconds=120)
    assert caught.value.code == "no_training_data"
    assert sum("no problem is left to train on" in message for message in _messages(service, job.id)) == 1
    worker_log = (service.data_dir / "worker.log").read_text(encoding="utf-8")
    logged = [json.loads(line) for line in worker_log.splitlines() if job.id in line]
    failures = [line for line in logged if line["message"] == "ERROR engine: the run failed"]
    assert sorted(line["rank"] for line in failures) == [0, 1]
    assert len({line["request_id"] for line in failures}) == 1


def _wait_for_step(service: LocalService, job_id: str, step: int) -> None:
    _eventually(service, job_id, lambda job: (job.step or 0) >= step)


def _wait_for_status(service: LocalService, job_id: str, status: str) -> None:
    _eventually(service, job_id, lambda job: job.status == status)


def _eventually(service: LocalService, job_id: str, holds: Any, *, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not holds(job := service.client.jobs.get(job_id)):
        is_over = job.status in ("succeeded", "failed", "cancelled")
        if is_over or time.monotonic() > deadline:
            raise AssertionError(f"{job.status} {job.error} {_messages(service, job_id)}")
        time.sleep(0.1)


def _process_of_rank(rank: int, job_id: str) -> int:
    """Return the engine's child with this rank: the ranks' command lines are alike, their environments are not."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue  # it ended, or it is somebody else's
        is_child = job_id.encode() in command and b"torch.distributed.run" not in command
        if is_child and f"RANK={rank}".encode() in environment.split(b"\0"):
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank} works on {job_id}")


def _messages(service: LocalService, job_id: str) -> list[str]:
    return [event.message for event in service.client.events.list(job_id)]
