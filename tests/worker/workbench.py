"""A worker's parts over a real database and a real folder, and what tests ask of them."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from contract.database import Database
from contract.ids import DATASET_PREFIX, JOB_PREFIX, new_id
from contract.job_spec import JobSpec
from contract.job_state import JobStatus
from contract.messages import DEFAULT_QUEUE
from contract.routing import Offer
from contract.storage import Storage
from contract.storage_keys import dataset_key
from contract.tables import Attempt as AttemptRow
from contract.tables import Base, Checkpoint, Dataset, Job, JobEvent
from tests.worker.scripted_engine import Plan
from worker.attempt import Attempt, Slot
from worker.lease import Lease, claim
from worker.settings import WorkerSettings
from worker.supervisor import run_next

SCRIPT = Path(__file__).with_name("scripted_engine.py")
ANYTHING = Offer(queues=(DEFAULT_QUEUE,))
"""The offer of a worker of which nothing is known but its queue."""
ROWS = b'{"problem": "1+1", "answer": "2"}\n'


def scripted_command(plan: Plan) -> Callable[[Path, int], list[str]]:
    """Return a command builder for `worker.attempt.Slot`."""
    return lambda folder, _devices: [sys.executable, str(SCRIPT), str(folder), plan.to_json()]


def eventually(is_true: Callable[[], Any], *, seconds: float = 30.0) -> Any:
    """Wait until `is_true` gives something true, and return it; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := is_true()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.03)
    return value


def process_exists(pid: int) -> bool:
    """Return True while the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def running(slot: Slot) -> Iterator[threading.Thread]:
    """Run the next job's attempt in a thread; stop it like a worker that shuts down if the test fails."""
    thread = threading.Thread(target=run_next, args=[slot])
    thread.start()
    try:
        yield thread
    finally:
        slot.stopping.set()
        thread.join(30)
        assert not thread.is_alive()


def ended(thread: threading.Thread, *, seconds: float = 30.0) -> None:
    """Wait for the attempt's own end."""
    thread.join(seconds)
    assert not thread.is_alive(), "the attempt continues"


class Workbench:
    """What the tests of the worker have in common."""

    def __init__(self, database_url: str, data_dir: Path, **settings: Any) -> None:
        quick: dict[str, Any] = {
            "lease_seconds": 10.0,
            "heartbeat_seconds": 0.2,
            "progress_seconds": 0.05,
            "poll_seconds": 0.2,
            "reaper_seconds": 0.2,
            "stop_grace_seconds": 10.0,
        }
        self.settings = WorkerSettings(
            data_dir=data_dir,
            database_url=database_url,
            **{"storage_url": f"file://{data_dir / 'storage'}", **quick, **settings},
        )
        self.database = Database(database_url, pool_size=20)
        self.storage = Storage(self.settings.storage_url)
        self._slots: list[Slot] = []

    def close(self) -> None:
        """Close the connections."""
        for slot in self._slots:
            slot.close()
        self.database.dispose()

    def slot(self, plan: Plan | None = None, **settings: Any) -> Slot:
        """Return a worker's slot whose child plays `plan`."""
        changed = self.settings.model_copy(update=settings)
        slot = Slot(changed, command_for=scripted_command(plan or Plan()))
        self._slots.append(slot)
        return slot

    def add_dataset(self, rows: bytes = ROWS) -> str:
        """Add an uploaded dataset."""
        dataset_id = new_id(DATASET_PREFIX)
        self.storage.write(dataset_key(dataset_id), rows)
        row = {
            "id": dataset_id,
            "owner": "tester",
            "filename": "rows.jsonl",
            "format": "jsonl",
            "num_rows": 1,
            "num_bytes": len(rows),
            "sha256": hashlib.sha256(rows).hexdigest(),
            "has_solutions": False,
            "storage_key": dataset_key(dataset_id),
            "created_at": datetime.now(UTC),
        }
        with self.database.write() as session:
            session.execute(insert(Dataset).values(**row))
        return dataset_id

    def add_job(self, *, spec: dict[str, Any] | None = None, **columns: Any) -> str:
        """Add a queued job."""
        wanted = {"mode": "opd", "student": "tiny-student", "teacher": "tiny-teacher", **(spec or {})}
        wanted.setdefault("dataset", self.add_dataset())
        job_id = new_id(JOB_PREFIX)
        row = {
            "id": job_id,
            "owner": "tester",
            "mode": wanted["mode"],
            "spec": JobSpec.model_validate(wanted).resolved().model_dump(mode="json"),
            "body_sha256": "0" * 64,
            "created_at": datetime.now(UTC),
            "status": JobStatus.QUEUED,
            "queue": DEFAULT_QUEUE,
            "priority": 0,
            "latest_metrics": {},
            **columns,
        }
        with self.database.write() as session:
            session.execute(insert(Job).values(**row))
        return job_id

    def claim(
        self, worker: str = "someone", *, lease_seconds: float = 30.0, offer: Offer | None = None
    ) -> Lease | None:
        """Claim the next job of the offer, without one of the default queue."""
        with self.database.write() as session:
            return claim(session, offer or ANYTHING, worker=worker, lease_seconds=lease_seconds)

    def attempt(self, lease: Lease, **settings: Any) -> Attempt:
        """Return the attempt that holds the lease."""
        return Attempt(self.slot(**settings), lease)

    def claimed(self) -> Lease:
        """Add a job, and claim it."""
        self.add_job()
        lease = self.claim()
        assert lease is not None
        return lease

    def set_job(self, job_id: str, **columns: Any) -> None:
        """Change the job's row, as the API would."""
        with self.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**columns))

    def job(self, job_id: str) -> Job:
        """Return the job's row."""
        with self.database.read() as session:
            return session.execute(select(Job).where(Job.id == job_id)).scalar_one()

    def attempts(self, job_id: str) -> list[AttemptRow]:
        """Return the job's attempts, in order."""
        return self.rows(AttemptRow, job_id, AttemptRow.number)

    def events(self, job_id: str, type_: str | None = None) -> list[JobEvent]:
        """Return the job's events, in order."""
        found = self.rows(JobEvent, job_id, JobEvent.sequence)
        return [event for event in found if type_ in (None, event.type)]

    def codes(self, job_id: str) -> list[str]:
        """Return the codes of the job's notices."""
        return [event.data["code"] for event in self.events(job_id, "notice")]

    def checkpoint_steps(self, job_id: str) -> list[int]:
        """Return the steps of the stored checkpoints, oldest first."""
        return [checkpoint.step for checkpoint in self.rows(Checkpoint, job_id, Checkpoint.step)]

    def rows(self, table: type[Base], job_id: str, order: Any) -> list[Any]:
        """Return the job's rows in a table."""
        with self.database.read() as session:
            return list(session.scalars(select(table).where(table.job_id == job_id).order_by(order)))  # type: ignore[attr-defined]

    def attempt_folder(self, job_id: str, number: int = 1) -> Path:
        """Return the scratch folder of an attempt."""
        return self.settings.scratch_dir / job_id / f"attempt-{number:04d}"

    def child_pid(self, job_id: str, number: int = 1) -> int:
        """Return the process id of the attempt's child, once it runs."""
        path = self.attempt_folder(job_id, number) / "pid"
        return int(eventually(lambda: path.exists() and path.read_text()))
