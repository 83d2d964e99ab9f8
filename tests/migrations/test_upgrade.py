"""An upgrade under load: the database of the first release is migrated while its worker runs a job.

No process of the old version takes part: `OldWorker` sends the statements of the first release's worker (claim,
renewal, progress) as that version wrote them, in its transactions. The new API and the new worker are real.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy.exc import IntegrityError, NoResultFound

from contract.database import Database
from contract.ids import CHECKPOINT_PREFIX, DATASET_PREFIX, JOB_PREFIX, new_id
from contract.job_spec import JobSpec
from contract.job_state import JobStatus
from contract.messages import DEFAULT_QUEUE
from contract.storage_keys import checkpoint_prefix, dataset_key
from contract.tables import Trajectory
from service.app import create_app
from service.settings import Settings
from tests.migrations.schema import upgrade
from tests.servers import PostgresServer
from tests.worker.scripted_engine import Plan
from tests.worker.workbench import ROWS, Workbench, eventually
from worker.reaper import reap
from worker.supervisor import run_next

FIRST_RELEASE = "0007"
"""The schema of the first release, whose tables are one migration: no older database exists."""
KEY = "the-operators-own-key"


class OldWorker:
    """A worker of the first release that holds one job's lease, on a separate connection."""

    def __init__(self, url: str, job_id: str, *, lease_seconds: float = 30.0) -> None:
        self.database = Database(url, pool_size=2)
        is_sqlite = self.database.is_sqlite
        now = "strftime('%Y-%m-%d %H:%M:%f000', 'now', {} || ' seconds')"
        now = now if is_sqlite else "(clock_timestamp() + {} * interval '1 second')"
        self._now, self._until = now.format("0.0"), now.format(repr(lease_seconds))
        self._for_update = "" if is_sqlite else " FOR UPDATE"
        self.job_id = job_id
        self.step = 0
        self.failures: list[Exception] = []

    def claim(self) -> None:
        """Take the lease, number 1."""
        with self.database.write() as session:
            taken = session.execute(
                sa.text(
                    "UPDATE jobs SET status = 'running', lease_owner = 'old', lease_token = lease_token + 1, "
                    f"lease_expires_at = {self._until}, attempt = attempt + 1, "
                    f"started_at = coalesce(started_at, {self._now}), phase = 'preparing', finished_at = NULL, "
                    "error_code = NULL, error_message = NULL, error_retryable = NULL, error_hint = NULL "
                    "WHERE id = :job AND status = 'queued' RETURNING lease_token, attempt"
                ),
                {"job": self.job_id},
            ).one()
            assert taken == (1, 1)
            session.execute(
                sa.text(
                    "INSERT INTO attempts (job_id, number, worker, lease_token, status, started_at) "
                    f"VALUES (:job, 1, 'old', 1, 'running', {self._now})"
                ),
                {"job": self.job_id},
            )
            self._event(session, "status", "Attempt 1 started.")

    def renew(self) -> None:
        """Extend the lease; raises if it is lost."""
        with self.database.write() as session:
            session.execute(
                sa.text(
                    f"UPDATE jobs SET lease_expires_at = {self._until} WHERE id = :job AND lease_token = 1 "
                    "AND status IN ('running', 'pausing', 'cancelling') RETURNING status"
                ),
                {"job": self.job_id},
            ).one()

    @contextmanager
    def fenced(self) -> Iterator[Any]:
        """Yield a transaction that holds the job's row; raise if the lease is lost."""
        with self.database.write() as session:
            held = "SELECT id, status, attempt, num_lost FROM jobs WHERE id = :job AND lease_token = 1 "
            held += f"AND status IN ('running', 'pausing', 'cancelling'){self._for_update}"
            session.execute(sa.text(held), {"job": self.job_id}).one()
            yield session

    def progress(self) -> None:
        """Write a step: the job, its attempt, a metric, a trajectory and an event, in this order."""
        step = self.step + 1
        with self.fenced() as session:
            values = {"job": self.job_id, "step": step, "metrics": json.dumps({"loss": 1 / step})}
            job = "UPDATE jobs SET step = :step, phase = 'training', latest_metrics = :metrics WHERE id = :job"
            session.execute(sa.text(job), values)
            attempt = "UPDATE attempts SET last_step = :step WHERE job_id = :job AND number = 1"
            session.execute(sa.text(attempt), values)
            point = "INSERT INTO metric_points (job_id, name, step, value, at) "
            point += f"VALUES (:job, 'loss', :step, 0.5, {self._now}) "
            point += "ON CONFLICT (job_id, name, step) DO UPDATE SET value = excluded.value, at = excluded.at"
            session.execute(sa.text(point), values)
            row = {"job_id": self.job_id, "round": 1, "position": step, "problem_id": "1", "sample": 0}
            row |= {"outcome": "right", "prompt": "1+1", "answer": "2", "rollout": "2", "rollout_correct": True}
            row |= {"rollout_tokens": 1, "detail": "{}"}
            names = ", ".join(row)
            session.execute(
                sa.text(f"INSERT INTO trajectories ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row
            )
            self._event(session, "notice", f"step {step}")
        self.step = step

    def _event(self, session: Any, type_: str, message: str) -> None:
        numbered = "UPDATE jobs SET num_events = num_events + 1 WHERE id = :job RETURNING num_events"
        number = session.execute(sa.text(numbered), {"job": self.job_id}).scalar_one()
        event = "INSERT INTO job_events (job_id, sequence, type, level, message, data, created_at) "
        event += f"VALUES (:job, :number, :type, 'info', :message, '{{}}', {self._now})"
        session.execute(sa.text(event), {"job": self.job_id, "number": number, "type": type_, "message": message})

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Send heartbeats and progress from two threads until the block ends, as the worker does."""
        ended = threading.Event()

        def repeat(act: Callable[[], None]) -> None:
            while not ended.wait(0.02):
                try:
                    act()
                except Exception as error:  # noqa: BLE001 - the test looks at them
                    self.failures.append(error)

        threads = [threading.Thread(target=repeat, args=[act]) for act in (self.renew, self.progress)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(60)


class OldDatabase:
    """Rows as the first release stored them, by its columns."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self.now: Any = datetime.now(UTC) - timedelta(hours=1)
        if bench.database.is_sqlite:
            self.now = f"{self.now:%Y-%m-%d %H:%M:%S.%f}"
        self.dataset = new_id(DATASET_PREFIX)
        bench.storage.write(dataset_key(self.dataset), ROWS)
        row = {"id": self.dataset, "owner": "admin", "filename": "rows.jsonl", "format": "jsonl", "num_rows": 1}
        row |= {"num_bytes": len(ROWS), "sha256": hashlib.sha256(ROWS).hexdigest(), "has_solutions": False}
        self.insert("datasets", **row, storage_key=dataset_key(self.dataset), created_at=self.now)

    def insert(self, table: str, **row: Any) -> None:
        """Add a row."""
        names = ", ".join(row)
        statement = sa.text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in row)})")
        with self._bench.database.write() as session:
            session.execute(statement, row)

    def add_job(self, status: str, **columns: Any) -> str:
        """Add a job with its first event, and with the attempt of a worker that is gone if the status needs one."""
        job_id = new_id(JOB_PREFIX)
        wanted: dict[str, Any] = {
            "mode": "opd",
            "student": "tiny-student",
            "teacher": "tiny-teacher",
            "dataset": self.dataset,
        }
        wanted |= {"evaluation": {"holdout": 0}}
        resolved = JobSpec.model_validate(wanted).resolved().model_dump(mode="json")
        row: dict[str, Any] = {"id": job_id, "owner": "admin", "mode": "opd", "body_sha256": "0" * 64}
        row |= {"spec": json.dumps(resolved), "requested": json.dumps(wanted), "created_at": self.now}
        row |= {"status": status, "queue": DEFAULT_QUEUE, "priority": 0, "attempt": 0, "num_lost": 0, "lease_token": 0}
        row |= {"step": 0, "latest_metrics": "{}", "num_events": 1}
        if status in ("pausing", "cancelling"):
            row |= {"attempt": 1, "lease_token": 1, "lease_owner": "gone", "lease_expires_at": self.now}
        if status in ("succeeded", "failed", "cancelled"):
            row |= {"finished_at": self.now}
        self.insert("jobs", **row | columns)
        event = {"job_id": job_id, "sequence": 1, "type": "status", "level": "info", "message": "The job is queued."}
        self.insert("job_events", **event, data='{"status": "queued"}', created_at=self.now)
        if row["attempt"]:
            attempt = {"job_id": job_id, "number": 1, "worker": "gone", "lease_token": 1, "status": "running"}
            self.insert("attempts", **attempt, started_at=self.now)
        return job_id

    def add_checkpoint(self, job_id: str, step: int) -> None:
        """Add a checkpoint from which the scripted engine resumes."""
        prefix, checkpoint = checkpoint_prefix(job_id, 1, step), new_id(CHECKPOINT_PREFIX)
        content = json.dumps({"step": step}).encode()
        file = {"name": "state/count.json", "num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = json.dumps({"step": step, "formats": ["full"], "files": [file], "metrics": {}}).encode()
        self._bench.storage.write(f"{prefix}/state/count.json", content)
        self._bench.storage.write(f"{prefix}/manifest.json", manifest)
        row = {"id": checkpoint, "job_id": job_id, "step": step, "attempt": 1, "formats": '["full"]', "metrics": "{}"}
        row |= {"num_bytes": len(content), "manifest_sha256": hashlib.sha256(manifest).hexdigest()}
        self.insert("checkpoints", **row, storage_prefix=prefix, created_at=self.now)
        self.insert("checkpoint_files", checkpoint_id=checkpoint, storage_key=f"{prefix}/state/count.json", **file)


@pytest.fixture
def bench(empty_database_url: str, tmp_path: Path) -> Iterator[Workbench]:
    """The new worker's parts, on a database without tables."""
    made = Workbench(empty_database_url, tmp_path / "data")
    yield made
    made.close()


@contextmanager
def new_api(bench: Workbench) -> Iterator[TestClient]:
    """Start the new API, with the operator's key."""
    of_worker = bench.settings
    settings = Settings(
        data_dir=of_worker.data_dir,
        database_url=of_worker.database_url,
        storage_url=of_worker.storage_url,
        api_key=KEY,
        judge_references=False,
    )
    with TestClient(create_app(settings), headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_jobs_of_the_first_release_go_on_after_a_migration_during_their_run(bench: Workbench) -> None:
    url = bench.settings.database_url
    upgrade(url, FIRST_RELEASE)
    old = OldDatabase(bench)
    jobs = {status: old.add_job(status) for status in JobStatus if status is not JobStatus.RUNNING}
    jobs |= {"deleted": old.add_job("failed", deleted_at=old.now), "running": old.add_job("queued")}
    old.add_checkpoint(jobs["running"], 2)
    worker = OldWorker(url, jobs["running"])
    worker.claim()
    with worker.at_work():
        eventually(lambda: worker.step >= 3)
        upgrade(url)
        during = worker.step
        eventually(lambda: worker.step >= during + 3)
    assert worker.failures == []
    with pytest.raises(IntegrityError):
        old.add_job("queued")  # the old API, which has to be stopped
    assert [(row.status, row.last_step) for row in bench.attempts(jobs["running"])] == [("running", worker.step)]

    with new_api(bench) as api:
        shown = {job["id"]: job for job in api.get("/jobs", params={"limit": 100}).json()["data"]}
        assert {status: shown[job]["status"] for status, job in jobs.items() if job in shown} == {
            status: status for status in JobStatus
        }
        running = api.get(f"/jobs/{jobs['running']}").json()
        assert (running["step"], running["attempt"], running["removed_before"]) == (worker.step, 1, {})
        assert api.post(f"/jobs/{jobs['paused']}/resume").json()["status"] == "queued"
        cloned = api.post(f"/jobs/{jobs['failed']}/clone", json={})
        assert cloned.status_code == 201, cloned.text

        bench.set_job(jobs["running"], lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))
        assert set(reap(bench.database, max_attempts=3)) == {jobs[s] for s in ("running", "pausing", "cancelling")}
        for late_write in (worker.renew, worker.progress):
            with pytest.raises(NoResultFound):
                late_write()
        worker.database.dispose()
        total = worker.step + 2
        plan = Plan(num_steps=total, checkpoint_every=1000)
        ran = [run_next(bench.slot(plan)) for _ in range(4)]
        assert ran == [True] * 4
        assert api.get(f"/jobs/{jobs['running']}/metrics").json()["data"][-1]["steps"] == list(range(1, total + 1))

    events = bench.events(jobs["running"])
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    steps = [event.message for event in events if event.message.startswith("step ")]
    assert steps == [f"step {number}" for number in range(1, worker.step + 1)]
    trajectories = bench.rows(Trajectory, jobs["running"], Trajectory.position)
    assert [row.position for row in trajectories if row.round == 1] == list(range(1, worker.step + 1))
    ended = {"queued": "succeeded", "running": "succeeded", "paused": "succeeded"}
    ended |= {"pausing": "paused", "cancelling": "cancelled", "deleted": "failed"}
    assert {name: bench.job(job).status for name, job in jobs.items()} == {name: ended.get(name, name) for name in jobs}
    assert bench.job(cloned.json()["id"]).status == "succeeded"
    assert [(a.status, a.first_step) for a in bench.attempts(jobs["running"])] == [("lost", None), ("succeeded", 2)]


def test_a_migration_and_a_workers_transaction_never_wait_for_each_other(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """A worker locks its job before anything else, so the migration must do so too: revision 0016 changes attempts."""
    url = postgres_server.create_database()
    upgrade(url, "0015")
    bench = Workbench(url, tmp_path / "data")
    worker = OldWorker(url, OldDatabase(bench).add_job("queued", spec_bytes=0))
    worker.claim()
    waiting = "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database AND datname = current_database()"
    with ThreadPoolExecutor(1) as thread:
        with worker.fenced() as session:
            migration = thread.submit(upgrade, url)
            with bench.database.engine.connect() as other:
                eventually(lambda: other.execute(sa.text(f"{waiting} WHERE NOT granted")).scalar())
            session.execute(sa.text("UPDATE attempts SET last_step = 1 WHERE job_id = :job"), {"job": worker.job_id})
        migration.result(60)
    assert bench.attempts(worker.job_id)[0].last_step == 1
    bench.close()
    worker.database.dispose()
    postgres_server.drop_database(url)
