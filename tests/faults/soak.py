"""``python -m tests.faults.soak``: many jobs, a few workers, and random kills for a quarter of an hour.

By default the workers run the small engine of `tests.faults.harness.quick_engine`: what is under test is all around the
engine. ``--engine real`` trains the tiny models.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.harness.deployment import Deployment, Worker
from tests.faults.harness.record import differences
from tests.faults.harness.report import say, write_report
from tests.faults.harness.scene import ENDED, Scene, Theatre
from tests.worker.workbench import eventually

ENGINES = {"small": "tests.faults.harness.quick_worker", "real": "worker.celery_app"}

SLOW = {"QUICK_PHASE_SECONDS": "0.5"}
"""Settings of the small engine that let 200 jobs last for as long as the kills."""


def kill_worker(worker: Worker) -> None:
    worker.kill()


def kill_engine(worker: Worker) -> None:
    for child in worker.children():
        os.killpg(child, signal.SIGKILL)


def freeze(worker: Worker) -> None:
    worker.send(signal.SIGSTOP)


def deploy(worker: Worker) -> None:
    worker.terminate()


HARMS = (kill_worker, kill_engine, freeze, deploy)


class Soak:
    """Jobs in a deployment, and the harm that is done to its workers meanwhile."""

    def __init__(self, theatre: Theatre, num_jobs: int, num_workers: int) -> None:
        self.deployment = theatre.deployment
        self.reference = theatre.reference
        self.names = [f"soak-{number}" for number in range(num_workers)]
        self.harm = Counter[str]()
        self.scenes: list[Scene] = []
        for _ in range(num_jobs):
            self.scenes.append(theatre.scene())
            self.scenes[-1].submit()

    def is_over(self) -> bool:
        """Return whether all jobs have ended."""
        return not self.deployment.sql(
            "SELECT 1 FROM jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled') LIMIT 1"
        )

    def disturb(self, seconds: float, seed: int) -> None:
        """Harm a worker every few seconds, and bring all back, until the time is over or all jobs have ended."""
        generator, deadline = random.Random(seed), time.monotonic() + seconds
        while time.monotonic() < deadline and not self.is_over():
            self._revive()
            time.sleep(generator.uniform(2.0, 6.0))
            harm, name = generator.choice(HARMS), generator.choice(self.names)
            harm(self.deployment.workers[name])
            self.harm[harm.__name__] += 1
            if harm is freeze:
                time.sleep(generator.uniform(1.0, 9.0))  # the lease lasts six seconds
        self._revive()

    def _revive(self) -> None:
        for name in self.names:
            worker = self.deployment.start_worker(name)
            worker.send(signal.SIGCONT)

    def problems(self) -> list[str]:
        """Return what any job has lost."""
        found = []
        for scene in self.scenes:
            assert scene.status() in ENDED
            problems = differences(self.deployment, scene.job_id, self.reference)
            found += [f"{scene.job_id}: {problem}" for problem in problems]
        return found


def main(arguments: list[str]) -> int:
    """Run the soak; return 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=900.0, help="of the kills; all jobs are run to their end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=list(ENGINES), default="small")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="trd-soak-", dir="/tmp"))
    # A job whose workers are killed again and again before its first new step is no crash loop.
    with Deployment(folder, application=ENGINES[given.engine], TRD_MAX_ATTEMPTS="1000", **SLOW) as deployment:
        theatre = Theatre(deployment)
        theatre.dismiss_workers()
        began = time.monotonic()
        soak = Soak(theatre, given.jobs, given.workers)
        soak.disturb(given.seconds, given.seed)
        eventually(soak.is_over, seconds=3600)
        took = time.monotonic() - began
        problems = soak.problems()
        ((num_attempts, num_lost),) = deployment.sql(
            "SELECT count(*), count(*) FILTER (WHERE status <> 'succeeded') FROM attempts"
        )
    harm = ", ".join(f"{name.replace('_', ' ')} {count} times" for name, count in sorted(soak.harm.items()))
    report = (
        f"{given.jobs} jobs on {given.workers} workers, {given.engine} engine, {took:.0f} s: {harm}; "
        f"{num_attempts} attempts, of which {num_lost} did not complete their job; {len(problems)} losses."
    )
    write_report(soak=report)
    say("\n".join([report, *problems[:20]]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
