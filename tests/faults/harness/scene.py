"""One case: a job in the deployment, what a fault may be done to, and the measurement of what followed."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from testbed.make_data import draw_rows
from tests.faults.harness.deployment import Deployment, Worker
from tests.faults.harness.record import Record, differences, read_record
from tests.worker.workbench import eventually

SPEC: dict[str, Any] = {
    "mode": "trd",
    "student": "tiny-student",
    "teacher": "tiny-teacher",
    "lora": None,
    "rounds": 2,
    "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 64},
    "refine": {"max_prompt_tokens": 192, "max_new_tokens": 64},
    "optim": {"learning_rate": 1e-3, "batch_size": 4},
    "diagnosis": {"num_trajectories": 4},
    "checkpoints": {"every_steps": 1, "keep": 3},
    "evaluation": {"holdout": 0.25, "k": 1, "num_probe_samples": 2},
}
NUM_ROWS = 16
ENDED = ("succeeded", "failed", "cancelled")
JOB_SECONDS = 420


@dataclass(frozen=True)
class Case:
    """A line of the table."""

    name: str
    inject: Callable[[Scene], None]
    """Does the harm, and ends it if the case says so; called once the job is submitted."""
    before: Callable[[Scene], None] | None = None
    """Called before the job is submitted."""
    in_ci: bool = False
    """Whether `.ci/run` has it, too."""


@dataclass(frozen=True)
class Outcome:
    """What followed a fault."""

    name: str
    num_attempts: int
    problems: list[str]
    recovery_seconds: float | None
    """Time from the fault until the attempt that ended the job had written a metric; None if no fault was done."""
    total_seconds: float

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled or changed."""
        return not self.problems


class Scene:
    """A job in a deployment, and the ways to disturb it."""

    def __init__(self, deployment: Deployment, body: dict[str, Any]) -> None:
        self.deployment = deployment
        self.job_id = ""
        self.body = body
        """Body of the request that creates the job."""
        self._fault_at: float | None = None

    def submit(self, **headers: str) -> None:
        """Create the job by the API."""
        answer = self.deployment.client.post("/jobs", json=self.body, headers=headers)
        assert answer.status_code == 201, answer.text
        self.job_id = answer.json()["id"]

    def mark(self) -> None:
        """Note that the fault is done now: from here the time to recovery counts."""
        self._fault_at = self.deployment.database_seconds()

    def holder(self) -> Worker:
        """Return the worker that runs the job."""
        return self.deployment.holder(self.job_id)

    def events(self) -> list[dict[str, Any]]:
        """Return the engine's events in the newest attempt, as it wrote them."""
        folders = [worker.attempt_folder(self.job_id) for worker in self.deployment.workers.values()]
        newest = max(filter(None, folders), key=lambda folder: folder.name, default=None)
        if newest is None:
            return []
        with suppress(OSError, ValueError):
            lines = (newest / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines]
        return []

    def until_phase(self, phase: str, *, times: int = 1) -> None:
        """Wait until the newest attempt has entered a phase so many times."""

        def is_there() -> bool:
            return sum(event.get("phase") == phase for event in self.events() if event["type"] == "phase") >= times

        eventually(lambda: is_there() or self.status() in ENDED, seconds=JOB_SECONDS)
        assert self.status() not in ENDED, f"the job ended before its phase {phase}"

    def until_step(self, step: int) -> None:
        """Wait until the newest attempt has taken an optimizer step."""

        def is_there() -> bool:
            steps = [event["step"] for event in self.events() if event["type"] == "metrics"]
            return max(steps, default=0) >= step

        eventually(lambda: is_there() or self.status() in ENDED, seconds=JOB_SECONDS)
        assert self.status() not in ENDED, f"the job ended before step {step}"

    def until_stored(self, step: int) -> None:
        """Wait until a checkpoint of that step, or of a later one, has its row."""
        query = "SELECT 1 FROM checkpoints WHERE job_id = %s AND step >= %s"
        eventually(lambda: self.deployment.sql(query, self.job_id, step), seconds=JOB_SECONDS)

    def until_attempt(self, number: int) -> None:
        """Wait until that attempt has begun."""
        query = "SELECT 1 FROM attempts WHERE job_id = %s AND number >= %s"
        begun = eventually(
            lambda: self.deployment.sql(query, self.job_id, number) or self.status() in ENDED, seconds=JOB_SECONDS
        )
        assert begun is not True, f"the job ended before attempt {number}"

    def until_attempt_ended(self, number: int) -> None:
        """Wait until that attempt has ended."""
        query = "SELECT 1 FROM attempts WHERE job_id = %s AND number = %s AND status <> 'running'"
        eventually(lambda: self.deployment.sql(query, self.job_id, number), seconds=JOB_SECONDS)

    def status(self) -> str:
        """Return the job's status."""
        return str(self.deployment.sql("SELECT status FROM jobs WHERE id = %s", self.job_id)[0][0])

    def kill_child(self) -> None:
        """Signal 9 to the engine and all its processes."""
        (child,) = eventually(self.holder().children, seconds=60)
        os.killpg(child, signal.SIGKILL)

    def newest_checkpoint(self) -> str:
        """Return the prefix in the store of the newest checkpoint that has a row."""
        query = "SELECT storage_prefix FROM checkpoints WHERE job_id = %s ORDER BY step DESC LIMIT 1"
        return str(self.deployment.sql(query, self.job_id)[0][0])

    def circumstances(self) -> list[str]:
        """Return what the database and the workers show of the job, to explain why a case could not be played."""
        job = "SELECT status, attempt, step, lease_owner, lease_expires_at - clock_timestamp() FROM jobs WHERE id = %s"
        sessions = "SELECT application_name, state, wait_event, state_change, query FROM pg_stat_activity"
        shown = [*self.deployment.sql(job, self.job_id), *self.deployment.sql(f"{sessions} WHERE state <> 'idle'")]
        logs = [worker.log.read_text()[-2000:] for worker in self.deployment.workers.values()]
        return [*map(str, shown), *logs]

    def finished(self) -> tuple[int, float | None]:
        """Return the number of attempts and the time to recovery, once the job has ended."""
        d = self.deployment
        ((number,),) = d.sql("SELECT attempt FROM jobs WHERE id = %s", self.job_id)
        if self._fault_at is None:
            return number, None
        query = "SELECT extract(epoch FROM min(at)) FROM written_steps WHERE job_id = %s AND attempt = %s AND at > %s"
        ((first,),) = d.sql(query.replace("> %s", "> to_timestamp(%s)"), self.job_id, number, self._fault_at)
        ended_at = d.sql("SELECT extract(epoch FROM finished_at) FROM jobs WHERE id = %s", self.job_id)[0][0]
        seconds = float(first or ended_at) - self._fault_at
        assert seconds >= 0, "the job ended before the fault"
        return number, seconds


class Theatre:
    """The deployment with its two workers and an undisturbed run, on which the cases are played."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        rows = "".join(json.dumps(row) + "\n" for row in draw_rows("train", NUM_ROWS, seed=0))
        answer = deployment.client.post("/datasets", content=rows, headers={"content-type": "application/jsonl"})
        assert answer.status_code == 201, answer.text
        self._dataset_id = answer.json()["id"]
        self._start_workers()
        self.reference = self.undisturbed()

    def scene(self, **changes: Any) -> Scene:
        """Return a scene without a job; `changes` are of its spec."""
        return Scene(self.deployment, {**SPEC, "dataset": self._dataset_id, **changes})

    def undisturbed(self, **changes: Any) -> Record:
        """Return what a job leaves if nothing happens to it; `changes` are of its spec."""
        scene = self.scene(**changes)
        scene.submit()
        eventually(lambda: scene.status() in ENDED, seconds=JOB_SECONDS)
        assert scene.status() == "succeeded", scene.status()
        return read_record(self.deployment, scene.job_id)

    def _start_workers(self) -> None:
        for name in ("a", "b"):
            self.deployment.start_worker(name)

    def dismiss_workers(self) -> None:
        """End the two workers."""
        for name in ("a", "b"):
            self.deployment.workers.pop(name).kill()

    def play(self, case: Case) -> Outcome:
        """Run one case, and bring everything back to life."""
        began = time.monotonic()
        self._start_workers()
        scene = self.scene()
        try:
            with self._healed():
                if case.before is not None:
                    case.before(scene)
                if not scene.job_id:
                    scene.submit()
                case.inject(scene)
                eventually(lambda: scene.status() in ENDED, seconds=JOB_SECONDS)
            problems = differences(self.deployment, scene.job_id, self.reference)
            num_attempts, seconds = scene.finished()
        except Exception as error:  # noqa: BLE001 - the boundary of a case: the others are still played
            shown = "".join(traceback.format_exception(error)[-2:]).strip()
            problems = [f"the case could not be played: {shown}", *scene.circumstances()]
            return Outcome(case.name, 0, problems, None, time.monotonic() - began)
        return Outcome(case.name, num_attempts, problems, seconds, time.monotonic() - began)

    @contextmanager
    def _healed(self) -> Iterator[None]:
        try:
            yield
        finally:
            d = self.deployment
            d.store_proxy.heal()
            d.redis.revive()
            d.postgres.revive()
            d.start_apis()
            d.until_apis_answer()
            for name in list(d.workers):
                worker = d.workers[name]
                if worker.is_alive:
                    with suppress(ProcessLookupError):
                        worker.send(signal.SIGCONT)
                if name not in ("a", "b"):
                    worker.kill()
                    del d.workers[name]
