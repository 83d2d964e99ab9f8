"""The real engine as a worker's child, on the committed small models: nothing scripted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from sqlalchemy import select

from contract.job_state import JobStatus
from contract.tables import CheckpointFile, Diagnosis, Evaluation, MetricPoint, ProbeSample, Trajectory
from testbed.make_data import main as make_data
from tests.worker.workbench import Workbench, ended, eventually, running
from worker.attempt import Slot
from worker.supervisor import run_next

pytestmark = pytest.mark.slow


def spec(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    make_data(["--out", str(tmp_path / "rows"), "--train", "64", "--heldout", "8", "--validation", "8"])
    rows = next((tmp_path / "rows").glob("train*.jsonl"))
    return {
        "mode": "trd",
        "dataset": {"path": str(rows)},
        "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 96},
        "refine": {"max_prompt_tokens": 192, "max_new_tokens": 96},
        "lora": None,
        "optim": {"learning_rate": 1e-3, "batch_size": 8},
        "evaluation": {"holdout": 0.2, "k": 2, "num_probe_samples": 2},
        "diagnosis": {"num_trajectories": 16, "steps": "reference"},
        "checkpoints": {"every_steps": 2},
        **changes,
    }


def real_slot(bench: Workbench, **settings: Any) -> Slot:
    return Slot(bench.settings.model_copy(update=settings))


@pytest.mark.parametrize("devices", [1, 2])
def test_a_distillation_goes_through_and_its_model_is_in_the_storage(
    sqlite_bench: Workbench, tmp_path: Path, devices: int
) -> None:
    job_id = sqlite_bench.add_job(spec=spec(tmp_path, devices=devices))
    slot = real_slot(sqlite_bench)
    run_next(slot)
    slot.close()
    job = sqlite_bench.job(job_id)
    assert job.status == "succeeded", (job.error_message, sqlite_bench.codes(job_id))
    assert job.step == job.num_steps
    assert job.step >= 4
    assert job.latest_metrics["loss"] is not None
    assert [e.step for e in sqlite_bench.rows(Evaluation, job_id, Evaluation.step)] == [0, job.step]
    assert sqlite_bench.rows(Trajectory, job_id, Trajectory.position)[0].refined is not None
    steps = {point.step for point in sqlite_bench.rows(MetricPoint, job_id, MetricPoint.step) if point.name == "loss"}
    assert steps == set(range(1, job.step + 1))
    (diagnosis,) = sqlite_bench.rows(Diagnosis, job_id, Diagnosis.round)
    assert (diagnosis.round, diagnosis.step) == (0, 0)
    assert diagnosis.report["first_wrong_step"]["num_checked"] == diagnosis.report["num_trajectories"] == 16
    columns = (Trajectory.token_kl, Trajectory.rollout_tokens, Trajectory.refined_tokens)
    with sqlite_bench.database.read() as session:
        diagnosed = [row for row in session.execute(select(*columns)) if row.token_kl is not None]
    assert len(diagnosed) == 16
    for kl, *num_tokens in diagnosed:
        assert [len(kl["rollout"]), len(kl["refined"])] == num_tokens
    probes = sqlite_bench.rows(ProbeSample, job_id, ProbeSample.step)
    assert {(p.step, p.position) for p in probes} == {(s, n) for s in (0, job.step) for n in (0, 1)}
    assert "bad_event" not in sqlite_bench.codes(job_id)
    assert "seconds_by_phase" in sqlite_bench.events(job_id)[-1].data["summary"]
    with sqlite_bench.database.read() as session:
        files = {file.name: file.storage_key for file in session.query(CheckpointFile)}
    weights = sqlite_bench.settings.data_dir / "storage" / files["model/model.safetensors"]
    with safe_open(weights, framework="pt") as tensors:
        assert len(tensors.keys()) > 10


def test_a_paused_distillation_continues(sqlite_bench: Workbench, tmp_path: Path) -> None:
    """One on two devices does so in `test_two_devices`."""
    job_id = sqlite_bench.add_job(spec=spec(tmp_path, optim={"learning_rate": 1e-3, "batch_size": 4}))
    slot = real_slot(sqlite_bench)
    with running(slot) as thread:
        eventually(lambda: sqlite_bench.job(job_id).step >= 1, seconds=120)
        sqlite_bench.set_job(job_id, status=JobStatus.PAUSING)
        ended(thread, seconds=60)
    slot.close()
    paused = sqlite_bench.job(job_id)
    assert (paused.status, sqlite_bench.checkpoint_steps(job_id)[-1]) == ("paused", paused.step)
    sqlite_bench.set_job(job_id, status=JobStatus.QUEUED)
    again = real_slot(sqlite_bench)
    run_next(again)
    again.close()
    job = sqlite_bench.job(job_id)
    assert job.status == "succeeded", (job.error_message, sqlite_bench.codes(job_id))
    assert sqlite_bench.attempts(job_id)[1].first_step == paused.step
    steps = [point.step for point in sqlite_bench.rows(MetricPoint, job_id, MetricPoint.step) if point.name == "loss"]
    assert steps == list(range(1, (job.num_steps or 0) + 1))


def test_what_the_engine_refuses_is_the_jobs_error(sqlite_bench: Workbench, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join([json.dumps({"problem": "12+1", "answer": "13"})] * 3 + ['{"problem": 5}']) + "\n")
    job_id = sqlite_bench.add_job(spec=spec(tmp_path, dataset={"path": str(rows)}))
    slot = real_slot(sqlite_bench)
    run_next(slot)
    slot.close()
    job = sqlite_bench.job(job_id)
    assert (job.status, job.error_code, job.error_retryable) == ("failed", "dataset_invalid", False)
    assert job.error_message is not None
    assert "row 4" in job.error_message
