"""The command line as a new user meets it: started, fed, watched, interrupted, used; with real training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.make_data import main as make_data
from tests.servers import die_with_parent
from tests.worker.workbench import eventually, process_exists

CHECKOUT = Path(__file__).parents[2]
SPEC = """
mode: trd
student: tiny-student
teacher: tiny-teacher
task: exact
sampling: {engine: transformers, max_prompt_tokens: 64, max_new_tokens: 96}
refine: {max_prompt_tokens: 192, max_new_tokens: 96}
lora: null
optim: {learning_rate: 1e-3, batch_size: 16}
evaluation: {holdout: 0.1, k: 2}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def environment() -> dict[str, str]:
    """Return an environment in which commands run in an empty folder find this checkout."""
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


def trd(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "client.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Start ``trd up``, and yield what it says about itself; stop it at the end as by Ctrl-C."""
    command = [sys.executable, "-m", "client.cli", "up", "--port", "0", "--json"]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            if process.poll() is None:
                interrupt(process)


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 0


def shown(folder: Path, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(trd(folder, "show", job_id, "--json").stdout)
    return job


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_data(["--out", str(tmp_path), "--train", "64", "--seed", "0"])
    (tmp_path / "job.yaml").write_text(SPEC)
    return tmp_path


@pytest.fixture
def up(folder: Path) -> Iterator[None]:
    with started(folder):
        yield


@pytest.mark.usefixtures("up")
def test_from_a_bad_row_to_a_student_that_answers(folder: Path) -> None:
    assert "accepted" in trd(folder, "status").stdout
    assert "`trd keys create NAME` creates one" in trd(folder, "keys", "list").stdout
    rows = (folder / "train.jsonl").read_text().splitlines()
    (folder / "broken.jsonl").write_text("\n".join([*rows[:3], '{"problem": "1+1"}']))
    assert "row 4: answer" in trd(folder, "datasets", "upload", "broken.jsonl", code=5).stderr
    dry = trd(folder, "submit", "job.yaml", "--dataset", "train.jsonl", "--dry-run").stdout
    assert "num steps" in dry
    assert "memory of a device" in dry
    assert "at most, by calibration on a CPU" in dry
    submitted = trd(folder, "submit", "job.yaml", "--dataset", "train.jsonl", "--watch")
    assert "step 4 of 4" in submitted.stdout
    assert "Evaluations" in submitted.stdout
    assert "┤" in trd(folder, "metrics", "latest", "loss").stdout
    assert "y_r, refined" in trd(folder, "trajectories", "latest").stdout
    first = json.loads(trd(folder, "jobs", "--json").stdout)["data"][0]["id"]
    dry = trd(folder, "submit", "job.yaml", "--dataset", "train.jsonl", "--dry-run").stdout
    assert "as a similar job took" in dry
    trd(folder, "clone", first, "optim.learning_rate=1e-4", "--watch")
    assert "optim.learning_rate" in trd(folder, "compare", first, "latest").stdout
    assert trd(folder, "download", first, "--out", "student").stdout == "student\n"
    answer = trd(folder, "try", "student", "--prompt", "12+3*2").stdout
    assert "\\boxed{" in answer
    again = trd(folder, "up", code=1).stderr
    assert "is already running" in again


def test_a_job_continues_after_a_stop_and_a_kill(folder: Path) -> None:
    """Ctrl-C ends both processes; what is killed with signal 9 leaves none behind either; the job outlives both."""
    with started(folder) as (process, service):
        settings = ["--dataset", "train.jsonl", "--set", "optim.epochs=400"]
        job_id = json.loads(trd(folder, "submit", "job.yaml", *settings, "--json").stdout)["id"]
        eventually(lambda: shown(folder, job_id)["status"] == "running", seconds=60)
        both = children(process.pid)
        assert len(both) == 2
        interrupt(process)
        assert not any(process_exists(pid) for pid in both)
    trd(folder, "jobs", code=7)
    with started(folder) as (process, again):
        assert again["api_key"] == service["api_key"], "a key that was handed out stays good"
        eventually(lambda: shown(folder, job_id)["attempt"] == 2, seconds=60)
        both = children(process.pid)
        process.kill()
        process.wait(30)
        eventually(lambda: not any(process_exists(pid) for pid in both), seconds=30)
