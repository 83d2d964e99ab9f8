"""A job that is watched: line by line, as JSON, and as the live picture."""

from __future__ import annotations

import io
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from client import Client
from client.cli.live_view import LiveView, LossCurve
from contract.events import NewEvent, append_events
from contract.job_state import JobStatus, Phase
from contract.views.events import EventView, StreamEnd
from contract.views.jobs import JobProgress, JobView
from tests.client.cli.conftest import Run
from tests.client.conftest import RunningService
from tests.service.records import add_checkpoint, add_evaluation, add_metrics, finish_job, set_job


def play_a_run(service: RunningService, job_id: str, end: JobStatus) -> threading.Thread:
    """Write what a worker would write, over about two seconds."""

    def play() -> None:
        now = datetime.now(UTC)
        with service.database.write() as session:
            append_events(session, job_id, NewEvent("status", "Attempt 1 started.", {"status": "running"}))
        set_job(service.database, job_id, status="running", phase="training", started_at=now, attempt=1)
        for step in (1, 2):
            add_metrics(service.database, job_id, "loss", {step: 1.0 / step})
            set_job(
                service.database, job_id, step=step, num_steps=2, latest_metrics={"loss": 1.0 / step}, eta_seconds=3
            )
            time.sleep(0.8)
        add_evaluation(service.database, job_id, 2, 0.75)
        add_checkpoint(service.database, service.storage_dir, job_id, 2, {"model/x": b"x"})
        set_job(service.database, job_id, phase=None, error_code="engine_crashed" if end == "failed" else None)
        finish_job(service.database, job_id, end)

    thread = threading.Thread(target=play)
    thread.start()
    return thread


def test_a_log_gets_a_line_for_everything(run: Run, service: RunningService, job_id: str) -> None:
    thread = play_a_run(service, job_id, JobStatus.SUCCEEDED)
    done = run("watch", job_id)
    thread.join()
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line[10:] for line in lines[:2]] == ["The job is queued.", "Attempt 1 started."]
    assert any("step 2 of 2, loss 0.5, about 3 s left" in line for line in lines)
    assert "75.0 %" in done.out
    assert f"trd download {job_id}" in done.err


def test_programs_get_a_json_object_a_line(run: Run, service: RunningService, job_id: str) -> None:
    thread = play_a_run(service, job_id, JobStatus.SUCCEEDED)
    done = run("watch", job_id, "--json")
    thread.join()
    kinds = [line["object"] for line in done.lines]
    assert kinds[0] == "job.event"
    assert "job.progress" in kinds
    assert done.lines[-1]["object"] == "job"
    assert done.lines[-1]["status"] == "succeeded"


def test_a_job_that_fails_ends_with_its_own_exit_code(run: Run, service: RunningService, job_id: str) -> None:
    thread = play_a_run(service, job_id, JobStatus.FAILED)
    done = run("watch", job_id)
    thread.join()
    assert done.code == 3
    assert "engine_crashed" in done.err
    assert run("watch", job_id).code == 3, "it is over already"


def test_a_job_that_no_worker_can_run_says_so(
    run: Run, trd: Client, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.cli.watch._until_paused", lambda _: iter(()))
    for arguments in ((), ("--json",)):
        err = run("watch", job_id, *arguments).err
        assert "no live worker serves the queue" in err
        assert err.count("a job waits until a worker comes that can run it") == 1
    assert run("clone", job_id, "--watch").err.count("no live worker serves the queue") == 1


def test_a_paused_job_is_reported_and_not_waited_for(run: Run, trd: Client, job_id: str) -> None:
    trd.jobs.pause(job_id)
    for arguments in ((), ("--json",)):
        done = run("watch", job_id, *arguments)
        assert done.code == 8
        assert f"{job_id} is paused" in done.err
        assert f"trd resume {job_id}" in done.err


def test_ctrl_c_leaves_the_job_alone(run: Run, trd: Client, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client.cli.watch._print_lines", interrupt)
    done = run("watch", job_id)
    assert done.code == 130
    assert f"the job continues; watch it again with: trd watch {job_id}" in done.err
    assert trd.jobs.get(job_id).status is JobStatus.QUEUED


def drawn(view: LiveView, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def progress(job: JobView, **changes: object) -> JobProgress:
    return JobProgress.model_validate({**job.model_dump(), **changes})


def test_the_live_picture_shows_phase_steps_time_and_loss(trd: Client, service: RunningService, job_id: str) -> None:
    job = trd.jobs.get(job_id)
    view = LiveView(job, LossCurve(trd, job_id))
    assert "queued" in drawn(view)
    add_metrics(service.database, job_id, "loss", {step: 10.0 - step for step in range(1, 9)})
    started = EventView(
        sequence=2,
        type="status",
        level="info",
        message="Attempt 1 started.",
        data={"status": "running"},
        created_at=datetime.now(UTC) - timedelta(seconds=65),
    )
    view.take(started)
    view.take(progress(job, status="running", attempt=1, phase=Phase.ROLLOUT, phase_done=3, phase_total=12))
    seen = drawn(view)
    assert "▶ rollout" in seen
    assert "3 of 12" in seen
    assert "1 min 05 s" in seen
    view.take(
        progress(
            job,
            status="running",
            attempt=2,
            phase=Phase.TRAINING,
            round=1,
            num_rounds=2,
            step=8,
            num_steps=16,
            eta_seconds=100.0,
            latest_metrics={"loss": 2.0},
        )
    )
    seen = drawn(view)
    for words in ("✓ rollout", "▶ training", "· saving", "attempt 2", "round 2 of 2", "8 of 16, about 1 min 40 s left"):
        assert words in seen, words
    assert "█▇▆▅▄▃▂▁" in seen
    assert max(map(len, drawn(view, 80).splitlines())) <= 80
    assert "…" not in drawn(view, 80)
    view.take(StreamEnd(status=JobStatus.SUCCEEDED))
    assert "succeeded" in drawn(view)
