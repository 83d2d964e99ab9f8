"""A worker's figures for Prometheus: they count what happened, and are served on the port of the settings."""

from __future__ import annotations

import socket

import httpx
from prometheus_client import REGISTRY

from tests.worker.scripted_engine import Plan
from tests.worker.workbench import Workbench
from worker import metrics
from worker.settings import WorkerSettings
from worker.supervisor import run_next


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_attempts_and_checkpoints_are_counted(sqlite_bench: Workbench) -> None:
    names = ("trd_checkpoint_seconds_count", "trd_checkpoint_bytes_total")
    before = [value(name) for name in names]
    finished = value("trd_attempts_total", outcome="finished", error_code="")
    crashed = value("trd_attempts_total", outcome="failed", error_code="engine_crashed")
    job_id = sqlite_bench.add_job()
    run_next(sqlite_bench.slot(Plan(num_steps=4)))
    num_checkpoints = len(sqlite_bench.checkpoint_steps(job_id))
    sqlite_bench.add_job()
    run_next(sqlite_bench.slot(Plan(num_steps=4, exit_code_at_end=3, writes_finished=False)))
    assert value("trd_attempts_total", outcome="finished", error_code="") == finished + 1
    assert value("trd_attempts_total", outcome="failed", error_code="engine_crashed") == crashed + 1
    grown = [value(name) - was for name, was in zip(names, before, strict=True)]
    assert grown[0] >= num_checkpoints
    assert grown[1] > 0


def test_a_steps_figures_are_taken_and_others_are_not() -> None:
    before = value("trd_step_seconds_count")
    metrics.observe_step({"step_seconds": 2.5, "tokens_per_second": 640.0, "loss": 1.0})
    metrics.observe_step({"sampler_gap": 0.02, "step_seconds": None})
    assert value("trd_step_seconds_count") == before + 1
    assert (value("trd_tokens_per_second"), value("trd_sampler_gap_nats")) == (640.0, 0.02)


def test_the_figures_are_served_on_the_port_of_the_settings() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    metrics.serve(WorkerSettings.from_environment(metrics_port=port))
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert "# TYPE trd_lease_renewals_total counter" in text
    assert "trd_step_seconds_bucket" in text
