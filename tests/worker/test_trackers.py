"""Trackers get every figure once, also over a resumed attempt; what is wrong with them is reported in the job."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from contract.job_state import JobStatus
from contract.tables import JobEvent
from tests.servers import die_with_parent, free_port
from tests.worker.scripted_engine import Plan
from tests.worker.workbench import Workbench, eventually
from worker.supervisor import run_next

DYING = Plan(num_steps=6, checkpoint_every=2, die_at_step=4)
"""The second attempt resumes from step 2, and repeats step 3."""


def run_twice(bench: Workbench, *integrations: dict[str, Any], **settings: Any) -> str:
    """Run a job whose first attempt is killed; return its id."""
    job_id = bench.add_job(spec={"name": "<b>tracked</b>", "integrations": list(integrations)})
    slot = bench.slot(DYING, **settings)
    assert run_next(slot)
    assert bench.job(job_id).status == JobStatus.QUEUED
    assert run_next(slot)
    assert bench.job(job_id).status == JobStatus.SUCCEEDED
    return job_id


def trackers_dir(bench: Workbench) -> Path:
    return bench.settings.data_dir / "trackers"


@pytest.mark.slow
def test_tensorboard_and_wandb_have_every_step_once(sqlite_bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = {"type": "wandb", "project": "trd tests", "tags": ["a tag"]}
    job_id = run_twice(sqlite_bench, {"type": "tensorboard"}, wandb, tracker_grace_seconds=60)
    stored = EventAccumulator(str(trackers_dir(sqlite_bench) / "tensorboard" / job_id), size_guidance={"tensors": 0})
    stored.Reload()
    assert [point.step for point in stored.Tensors("loss")] == [1, 2, 3, 4, 5, 6]
    losses = [float(point.tensor_proto.float_val[0]) for point in stored.Tensors("loss")]
    assert losses == pytest.approx([1 / step for step in range(1, 7)])
    assert [point.step for point in stored.Tensors("holdout/avg_at_k")] == [0, 6]
    assert "grad_norm" not in stored.Tags()["tensors"], "it was never finite"
    files = trackers_dir(sqlite_bench).glob(f"wandb/**/*{job_id}.wandb")
    history = [row for path in files for row in rows(path)]
    assert {int(row["_step"]) for row in history} == {0, 1, 2, 3, 4, 5, 6}
    assert {float(row["loss"]) for row in history if "loss" in row} == {1 / step for step in range(1, 7)}
    codes = sqlite_bench.codes(job_id)
    assert "tracker_started" in codes
    assert not {"tracker_failing", "tracker_incomplete", "tracker_not_started"} & set(codes)


def rows(path: Path) -> list[dict[str, str]]:
    """Read the history in a file of W&B's offline mode: LevelDB's log format after seven bytes, with records of
    protobuf."""
    from wandb.proto import wandb_internal_pb2

    content, offset, found, whole = path.read_bytes(), 7, [], b""
    while offset + 7 <= len(content):
        _, length, kind = struct.unpack_from("<IHB", content, offset)
        whole += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if 32_768 - offset % 32_768 < 7:  # the end of a block has no room for a header
            offset += 32_768 - offset % 32_768
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.HasField("history"):
                found.append({one.key or "/".join(one.nested_key): one.value_json for one in record.history.item})
    return found


@pytest.mark.slow
def test_mlflow_gets_what_it_missed_in_an_outage(
    sqlite_bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server starts once the outage is reported; the job's first attempt is killed, and the second resumes it."""
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("//", "//ann:password@"))
    mlflow = {"type": "mlflow", "project": "trd tests"}
    with ThreadPoolExecutor(1) as worker:
        run = worker.submit(run_twice, sqlite_bench, mlflow, {"type": "tensorboard"}, tracker_grace_seconds=300)
        eventually(lambda: has_notice(sqlite_bench, "tracker_failing"), seconds=120)
        server = start_mlflow(url, tmp_path)
        try:
            job_id = run.result()
            api = f"{url}/api/2.0/mlflow"
            found = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": "trd tests"}, timeout=60)
            experiment = found.json()["experiment"]["experiment_id"]
            search = {"experiment_ids": [experiment]}
            (mlflow_run,) = httpx.post(f"{api}/runs/search", json=search, timeout=60).json()["runs"]
            info, data = mlflow_run["info"], mlflow_run["data"]
            steps = {}
            for name in ("loss", "holdout/avg_at_k"):
                query = {"run_id": info["run_id"], "metric_key": name}
                history = httpx.get(f"{api}/metrics/get-history", params=query, timeout=60).json()["metrics"]
                steps[name] = [(int(point.get("step", 0)), point["value"]) for point in history]
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # the command's uvicorn outlives it otherwise
            server.wait()
    assert steps["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    assert [step for step, _ in steps["holdout/avg_at_k"]] == [0, 6]
    assert (info["status"], info["run_name"]) == ("FINISHED", "<b>tracked</b>")
    assert {"key": "trd_job", "value": job_id} in data["tags"]
    assert {"key": "optim.batch_size", "value": "128"} in data["params"]
    assert "grad_norm" not in {metric["key"] for metric in data["metrics"]}, "it was never finite"
    assert {"tracker_failing", "tracker_recovered"} <= set(sqlite_bench.codes(job_id))
    assert "tracker_incomplete" not in sqlite_bench.codes(job_id)
    shown = [event for event in sqlite_bench.events(job_id, "notice") if "url" in event.data]
    assert f"{url}/#/experiments/{experiment}/runs/{info['run_id']}" in {event.data["url"] for event in shown}
    assert not any("password" in str((event.message, event.data)) for event in sqlite_bench.events(job_id))


def has_notice(bench: Workbench, code: str) -> bool:
    with bench.database.read() as session:
        return any(data["code"] == code for data in session.scalars(select(JobEvent.data).filter_by(type="notice")))


def start_mlflow(url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start MLflow's own server on a separate database: mlflow-skinny has its code, and `dev` what it imports."""
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    address = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "1"]
    with (folder / "mlflow.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *address, *store],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


@pytest.mark.slow
def test_a_tracker_that_fails_touches_no_training(sqlite_bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    trackers_dir(sqlite_bench).parent.mkdir(parents=True, exist_ok=True)
    trackers_dir(sqlite_bench).write_text("in the way of the folder")
    monkeypatch.setenv("ANNS_WANDB_API_KEY", "a secret")
    without_folder = {"type": "tensorboard"}
    not_allowed = {"type": "wandb", "api_key_env": "ANNS_WANDB_API_KEY"}
    not_there = {"type": "wandb", "api_key_env": "BOBS_WANDB_API_KEY"}
    settings: dict[str, Any] = {"tracker_grace_seconds": 10.0, "integration_secrets": frozenset({"BOBS_WANDB_API_KEY"})}
    job_id = sqlite_bench.add_job(spec={"integrations": [without_folder, not_allowed, not_there]})
    assert run_next(sqlite_bench.slot(**settings))
    assert sqlite_bench.job(job_id).status == JobStatus.SUCCEEDED
    notices = {event.data["code"]: event.message for event in sqlite_bench.events(job_id, "notice")}
    assert "Error" in notices["tracker_failing"]
    assert notices["tracker_incomplete"].startswith("tensorboard did not get all figures")
    refused = [e.message for e in sqlite_bench.events(job_id, "notice") if e.data["code"] == "tracker_not_started"]
    assert any("ANNS_WANDB_API_KEY: the operator does not list it" in message for message in refused)
    assert any("BOBS_WANDB_API_KEY: this worker has no such variable" in message for message in refused)
    assert not any("a secret" in event.message for event in sqlite_bench.events(job_id))
