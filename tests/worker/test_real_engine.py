"""The real engine as a worker's child, on the committed small models: nothing scripted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sqlalchemy import select

from contract.job_state import JobStatus
from contract.tables import CheckpointFile, Diagnosis, Evaluation, MetricPoint, ProbeSample, Trajectory
from testbed.make_data import main as make_data
from tests.trd_engine import rank_runs
from tests.trd_engine.forked import fork_ranks
from tests.worker.workbench import Workbench, ended, eventually, running
from worker.attempt import Slot
from worker.engine_process import engine_command
from worker.supervisor import run_next

pytestmark = pytest.mark.slow


def spec(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    make_data(["--out", str(tmp_path / "rows"), "--train", "24", "--heldout", "2", "--validation", "2"])
    rows = next((tmp_path / "rows").glob("train*.jsonl"))
    return {
        "mode": "trd",
        "dataset": {"path": str(rows)},
        "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 96},
        "refine": {"max_prompt_tokens": 192, "max_new_tokens": 96},
        "lora": None,
        "optim": {"learning_rate": 1e-3, "batch_size": 4},
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
    job_id = sqlite_bench.add_job(spec=spec(tmp_path, optim={"learning_rate": 1e-3, "batch_size": 1}))
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


FAULTS = """
import datetime, sys, time
from pathlib import Path
import torch
from worker import engine_child
from trd_engine.training import step

folder, limit_file, score = Path(sys.argv[1]), Path(sys.argv[2]), step.score

def scored(models, batch, *arguments, **options):
    if folder.name == "attempt-0001":
        torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=3))
        time.sleep(600 * models.world.rank)
    elif models.world.rank == 1:  # the other process waits for this one within its pass
        if not limit_file.exists():
            limit_file.write_text(str(batch.num_teacher_tokens // 2))
        if batch.num_teacher_tokens > int(limit_file.read_text()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return score(models, batch, *arguments, **options)

step.score = scored
code = engine_child.main(sys.argv[1:2])
sys.stdout.flush()
sys.exit(code)
"""


def test_several_processes_go_on_after_a_hang_and_in_smaller_passes_after_the_memory_ran_out(
    sqlite_bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the weights of a run that began with such passes, bit for bit, and of an undisturbed one up to rounding."""
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    (tmp_path / "rank.py").write_text(FAULTS)

    def command(folder: Path, devices: int) -> list[str]:
        engine = engine_command(folder, devices)
        return [*engine[:-3], str(tmp_path / "rank.py"), str(folder), str(tmp_path / "limit")]

    changes: dict[str, Any] = {"evaluation": {"holdout": 0.0}, "diagnosis": {"num_trajectories": 0}}
    changes |= {"optim": {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 2}, "checkpoints": {"every_steps": 100}}
    asked = spec(tmp_path, devices=2, **changes)
    job_id = sqlite_bench.add_job(spec=asked)
    slot = Slot(sqlite_bench.settings.model_copy(update={"max_attempts": 2}), command_for=command)
    for _ in range(3):
        run_next(slot)
    slot.close()
    job = sqlite_bench.job(job_id)
    assert job.status == "succeeded", (job.error_message, sqlite_bench.codes(job_id))
    hung, full, last = sqlite_bench.attempts(job_id)
    assert (hung.error_code, full.error_code) == ("collective_timeout", "passes_too_large")
    assert hung.error_message.startswith("rank 0 waited for the other processes in phase training: ")
    assert full.error_message.startswith("the memory ran out in a pass over 4 sequences, ")
    assert (full.first_step, last.first_step) == (0, 0), "the round's trajectories are kept"
    scratch = sqlite_bench.settings.scratch_dir / job_id
    document = json.loads((scratch / "attempt-0003" / "spec.json").read_text())
    assert document["max_pass_tokens"][1] == int((tmp_path / "limit").read_text())
    document["dataset"]["path"] = asked["dataset"]["path"]
    outs = {"small": document, "undisturbed": {**document, "max_pass_tokens": None}}
    plan = [(wanted, str(tmp_path / name), None) for name, wanted in outs.items()]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    log = tmp_path / "plan.log"
    assert fork_ranks(rank_runs.plan, tmp_path, num_processes=2, log=log) == [0, 0], log.read_text()
    with sqlite_bench.database.read() as session:
        files = {file.name: file.storage_key for file in session.query(CheckpointFile)}
    ours = load_file(sqlite_bench.settings.data_dir / "storage" / files["model/model.safetensors"])
    name = f"checkpoints/step-{job.step:08d}/model/model.safetensors"
    small, undisturbed = load_file(tmp_path / "small" / name), load_file(tmp_path / "undisturbed" / name)
    for key, weight in ours.items():
        assert torch.equal(weight, small[key]), key
        assert (weight - undisturbed[key]).norm() <= 1e-4 * weight.norm(), key


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
