"""A real Celery worker process, embedded (SQLite, no broker) and with servers (PostgreSQL, Redis)."""

from __future__ import annotations

import json
import time

import pytest
import redis
from celery import Celery

from contract.events import NewEvent, append_events
from contract.job_state import JobStatus
from contract.storage_keys import checkpoint_prefix
from tests.faults.conftest import Place
from tests.otlp_collector import collector
from tests.servers import RedisServer, free_port
from tests.worker.scripted_engine import Plan
from tests.worker.workbench import eventually, process_exists

LONG = Plan(num_steps=10_000, step_seconds=0.02, checkpoint_every=10)
NEVER = "600"
"""Seconds between two polls of the database: only a message can start a job."""


def test_an_embedded_worker_starts_a_job_within_a_second(embedded: Place) -> None:
    with (
        collector(hangs=True) as hanging,
        embedded.worker(Plan(), TRD_POLL_SECONDS="", **hanging.environment) as worker,  # the default
    ):
        worker.wait_until_ready()
        jobs = []
        for _ in range(3):
            jobs.append(embedded.bench.add_job())
            eventually(lambda: embedded.bench.job(jobs[-1]).status == "succeeded")
        assert hanging.num_requests > 0
        assert worker.terminate() == 0
        assert hanging.spans == []
    assert "Traceback" not in worker.output()
    for job in map(embedded.bench.job, jobs):
        assert job.started_at is not None
        assert (job.started_at - job.created_at).total_seconds() < 1


def test_a_doorbell_runs_a_job_and_its_duplicates_and_ghosts_do_nothing(with_servers: Place) -> None:
    place = with_servers
    forged = json.dumps({"logger": "engine", "job_id": "job_forged", "message": "forged"})
    prints = f"INFO loads\n[rank3]: ERROR \x1b[31mred\r{forged}\n{forged}\nno line end"
    trace, submission = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    origin = {"request_id": "req_of_the_job", "traceparent": f"00-{trace}-{submission}-01"}
    with (
        collector() as received,
        place.worker(
            Plan(prints=prints), TRD_POLL_SECONDS=NEVER, PYTHONWARNINGS="ignore", **received.environment
        ) as worker,
    ):
        worker.wait_until_ready()
        job_id = place.bench.add_job(origin=origin)
        with place.bench.database.write() as session:
            append_events(session, job_id, NewEvent("status", "The job is queued.", {"status": JobStatus.QUEUED}))
        place.ring(job_id, job_id, job_id, "job_that_never_was")
        eventually(lambda: place.bench.job(job_id).status == "succeeded")
        place.ring(job_id)
        later = place.bench.add_job()
        place.ring(later)
        eventually(lambda: place.bench.job(later).status == "succeeded")
        assert len(place.bench.attempts(job_id)) == 1
        assert worker.terminate() == 0
    assert "Traceback" not in worker.output()
    celerys_own = ("", "worker: Warm shutdown (MainProcess)")  # printed by its signal handler, which must not log
    lines = [json.loads(line) for line in worker.output().splitlines() if line not in celerys_own]
    assert len({line["worker"] for line in lines}) == 1
    assert not [line for line in lines if line.get("job_id") == "job_forged"]
    ids = {"job_id": job_id, "attempt": 1, "request_id": "req_of_the_job", "trace_id": trace}
    logged = [line for line in lines if {name: line.get(name) for name in ids} == ids]
    assert [line["message"] for line in logged if line["logger"] == "worker.supervisor"] == [
        f"attempt 1 of {job_id} begins",
        f"attempt 1 of {job_id}: finished; the job is succeeded",
    ]
    assert [(line["level"], line.get("rank"), line["message"]) for line in logged if line["logger"] == "engine"] == [
        ("info", None, "INFO loads"),
        ("error", 3, f"ERROR \x1b[31mred\r{forged}"),
        ("info", None, forged),
        ("info", None, "no line end"),
    ]
    spans = [span for span in received.spans if span.trace_id == trace]
    assert {span.process for span in received.spans} == {"trd-worker"}
    (attempt,) = [span for span in spans if span.name == "attempt"]
    assert attempt.attributes["trd.job_id"] == job_id
    parents = sorted((span.name, span.parent_id) for span in spans)
    below = ("rollout", "stage inputs", "store checkpoint", "store checkpoint", "training")
    assert parents == sorted(
        [("attempt", submission), ("wait in queue", submission), *((n, attempt.id) for n in below)]
    )
    for span in spans:
        assert span.began <= span.ended
    (wait,) = [span for span in spans if span.name == "wait in queue"]
    assert wait.ended <= attempt.began


@pytest.mark.slow
def test_polling_finds_the_job_of_a_lost_doorbell(place: Place) -> None:
    with place.worker(Plan()) as worker:
        worker.wait_until_ready()
        jobs = [place.bench.add_job() for _ in range(2)]
        for job_id in jobs:
            eventually(lambda job_id=job_id: place.bench.job(job_id).status == "succeeded")


@pytest.mark.slow
def test_work_continues_without_a_broker(with_servers: Place) -> None:
    job_id = with_servers.bench.add_job()
    with with_servers.worker(Plan(), BROKER_URL=f"redis://127.0.0.1:{free_port()}/0") as worker:
        eventually(lambda: with_servers.bench.job(job_id).status == "succeeded", seconds=40)
        assert "ready." not in worker.output()
        later = with_servers.bench.add_job()
        eventually(lambda: with_servers.bench.job(later).status == "succeeded")
        assert worker.terminate() == 0


@pytest.mark.slow
def test_a_worker_answers_while_a_job_runs_and_leaves_messages_to_free_workers(
    with_servers: Place, redis_server: RedisServer
) -> None:
    app = Celery("asker", set_as_current=False)
    app.conf.update(broker_url=with_servers.broker_url)
    with (
        with_servers.worker(LONG, TRD_POLL_SECONDS=NEVER) as worker,
        app,
        redis.Redis(port=redis_server.port) as client,
    ):
        worker.wait_until_ready()
        job_id = with_servers.bench.add_job()
        with_servers.ring(job_id)
        eventually(lambda: with_servers.bench.job(job_id).step >= 1)
        with_servers.ring(with_servers.bench.add_job())
        replies = app.control.ping(timeout=5.0, limit=1)
        assert [list(reply.values()) for reply in replies] == [[{"ok": "pong"}]]
        assert client.llen("trd-default") == 1, "the second bell is there for another worker"


@pytest.mark.slow
def test_cancel_reaches_the_child_through_the_database(place: Place) -> None:
    job_id = place.bench.add_job()
    with place.worker(LONG):
        pid = place.bench.child_pid(job_id)
        eventually(lambda: place.bench.job(job_id).step >= 1)
        place.bench.set_job(job_id, status=JobStatus.CANCELLING)
        asked_at = time.monotonic()
        eventually(lambda: place.bench.job(job_id).status == "cancelled")
        assert time.monotonic() - asked_at < 15
        assert not process_exists(pid)


@pytest.mark.slow
def test_a_worker_that_is_shut_down_gives_its_job_to_the_next(place: Place) -> None:
    job_id = place.bench.add_job()
    with place.worker(LONG, "first") as first:
        eventually(lambda: place.bench.job(job_id).step >= 3, seconds=40)
        assert first.terminate() == 0
    job = place.bench.job(job_id)
    assert (job.status, job.num_lost) == ("queued", 0)
    stored = place.bench.checkpoint_steps(job_id)[-1]
    assert stored >= 3
    with place.worker(Plan(num_steps=stored + 1), "second"):
        eventually(lambda: place.bench.job(job_id).status == "succeeded", seconds=40)
    first_attempt, second_attempt = place.bench.attempts(job_id)
    assert (first_attempt.status, second_attempt.first_step) == ("stopped", stored)


@pytest.mark.slow
def test_a_worker_killed_with_signal_9_loses_nothing_but_time(place: Place) -> None:
    """Its child dies with it, the reaper of another worker finds the job, and a damaged checkpoint is passed over."""
    job_id = place.bench.add_job()
    with place.worker(LONG, "first") as first:
        eventually(lambda: len(place.bench.checkpoint_steps(job_id)) == 3, seconds=40)
        pid = place.bench.child_pid(job_id)
        first.kill()
        eventually(lambda: not process_exists(pid))
    *_, previous, newest = place.bench.checkpoint_steps(job_id)
    assert place.bench.job(job_id).status == "running", "nobody has noticed yet"
    place.bench.storage.write(f"{checkpoint_prefix(job_id, 1, newest)}/state/count.json", b'{"step": 99}')
    with place.worker(Plan(num_steps=newest + 1), "second", TRD_LEASE_SECONDS="20"):  # it is not to lose its lease
        eventually(lambda: place.bench.job(job_id).status == "succeeded", seconds=40)
    lost, resumed = place.bench.attempts(job_id)
    assert (lost.status, lost.error_code) == ("lost", "worker_lost")
    assert resumed.first_step == previous
    assert "checkpoint_corrupt" in place.bench.codes(job_id)


@pytest.mark.slow
def test_two_workers_share_the_work_and_no_job(place: Place) -> None:
    jobs = [place.bench.add_job() for _ in range(6)]
    plan = Plan(num_steps=5, step_seconds=0.1)
    with place.worker(plan, "first"), place.worker(plan, "second"):
        for job_id in jobs:
            eventually(lambda job_id=job_id: place.bench.job(job_id).status == "succeeded", seconds=60)
    attempts = [attempt for job_id in jobs for attempt in place.bench.attempts(job_id)]
    assert len(attempts) == 6
    assert len({attempt.worker for attempt in attempts}) == 2
