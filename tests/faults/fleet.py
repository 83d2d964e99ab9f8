"""``python -m tests.faults.fleet``: ten jobs go through a fleet in miniature, while parts of it are killed.

All parts are processes of this machine: PostgreSQL, Redis, an S3 server, two APIs behind a proxy, four workers with
disjoint data folders, and a Ray cluster of two nodes, on which one of the workers starts its runs. An API, a worker and
a node are killed. Prints what recovered each, and what was lost; writes the section of docs/reliability.md.
"""

from __future__ import annotations

import ctypes
import fcntl
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from client import Client, ClientSettings
from contract.messages import queue_name
from tests.faults.harness.deployment import API_KEY, Deployment
from tests.faults.harness.record import Record, differences
from tests.faults.harness.report import say, write_report
from tests.faults.harness.scene import ENDED, JOB_SECONDS, Scene, Theatre
from tests.ray_cluster import RayCluster
from tests.worker.workbench import eventually

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1  # <linux/sockios.h>, <linux/if.h>
LONGEST_SECONDS = 2400
"""The command gives up after this time. It took six minutes on two cores, and twelve while other programs used them."""


@dataclass(frozen=True)
class Recovery:
    """What was killed, and what came of it."""

    killed: str
    recovered_by: str
    seconds: float


class Visitor(threading.Thread):
    """A client that lists the jobs ten times a second, on one connection while it lasts, and repeats no request."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._must_leave = threading.Event()
        self.num_requests = 0
        self.failures = Counter[str]()
        self.answered_at = 0.0
        """When the newest request that was answered began, by the monotonic clock."""

    def run(self) -> None:
        headers = {"authorization": f"Bearer {API_KEY}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=60, trust_env=False) as client:
            while not self._must_leave.wait(0.1):
                began_at = time.monotonic()
                self.num_requests += 1
                try:
                    client.get("/jobs").raise_for_status()
                    self.answered_at = began_at
                except httpx.HTTPError as error:
                    self.failures[type(error).__name__] += 1

    def leave(self) -> None:
        """End the thread."""
        self._must_leave.set()
        self.join()


class Fleet:
    """Jobs in a deployment of several APIs and workers, clients that watch them, and what is killed meanwhile."""

    def __init__(self, theatre: Theatre, references: Mapping[int, Record], num_jobs: Mapping[int, int]) -> None:
        """Plan the fleet. `references` has an undisturbed run's record, `num_jobs` the number of jobs, by `devices`."""
        self.deployment = theatre.deployment
        self._references = references
        self.scenes = [theatre.scene(devices=devices) for devices, num in num_jobs.items() for _ in range(num)]
        self._num_jobs_before = self._num_jobs()
        self._visitors = [Visitor(self.deployment.url) for _ in self.deployment.apis]
        self._disturbed: list[tuple[str, Scene]] = []
        self.recoveries: list[Recovery] = []

    def _num_jobs(self) -> int:
        return int(self.deployment.sql("SELECT count(*) FROM jobs")[0][0])

    def kill_api_while_jobs_are_submitted(self) -> None:
        """Let each job's client submit it, all at once, and kill an API as soon as the first has its answer."""
        for visitor in self._visitors:
            visitor.start()
        eventually(lambda: all(visitor.answered_at for visitor in self._visitors))
        with ThreadPoolExecutor(len(self.scenes)) as clients:
            answers = [clients.submit(self._submit, scene) for scene in self.scenes]
            eventually(lambda: any(answer.done() for answer in answers))
            killed_at = time.monotonic()
            self.deployment.apis[0].kill()
            eventually(lambda: all(visitor.answered_at > killed_at for visitor in self._visitors))
            seconds = time.monotonic() - killed_at
            for answer in answers:
                answer.result()
        by = "the other API, to which the proxy sends new connections"
        self.recoveries.append(Recovery("an API of two, while all jobs were submitted", by, seconds))
        self.deployment.start_apis()

    def _submit(self, scene: Scene) -> None:
        """Create a job as our client does: after an error it sends the request again, with the same key."""
        with Client(settings=ClientSettings(url=self.deployment.url, api_key=API_KEY)) as client:
            scene.job_id = client.jobs.create(scene.body).id

    def kill_worker(self) -> None:
        """Kill a worker in the middle of a job of one process, and start it again."""
        scene = self._in_the_middle(devices=1)
        worker = scene.holder()
        scene.mark()
        worker.kill()
        self._disturbed.append((f"the worker {worker.folder.name}, in the middle of a job", scene))
        self.deployment.start_worker(worker.folder.name)

    def kill_node(self, cluster: RayCluster) -> None:
        """Kill a node of the cluster in the middle of a run on all its nodes, and let another one join."""
        scene = self._in_the_middle(devices=2)
        scene.mark()
        cluster.nodes["two"].kill()
        self._disturbed.append(("a node of the Ray cluster, in the middle of a run", scene))
        cluster.add_node("three", num_devices=1)

    def _in_the_middle(self, *, devices: int) -> Scene:
        query = "SELECT id FROM jobs WHERE queue = %s AND status = 'running' AND step BETWEEN 2 AND num_steps - 2"

        def find() -> Scene | None:
            running = {job_id for (job_id,) in self.deployment.sql(query, queue_name(None, devices))}
            return next((scene for scene in self.scenes if scene.job_id in running), None)

        scene = eventually(lambda: find() or self._have_all_ended(), seconds=JOB_SECONDS)
        assert isinstance(scene, Scene), f"all jobs had ended before one of {devices} processes was found in its middle"
        return scene

    def _have_all_ended(self) -> bool:
        return all(scene.status() in ENDED for scene in self.scenes)

    def finish(self) -> None:
        """Wait until all jobs have ended, and note what each recovery took."""
        eventually(self._have_all_ended, seconds=LONGEST_SECONDS)
        self.deployment.until_apis_answer()
        for visitor in self._visitors:
            visitor.leave()
        query = "SELECT worker, first_step FROM attempts WHERE job_id = %s AND number = %s"
        for killed, scene in self._disturbed:
            number, seconds = scene.finished()
            ((owner, step),) = self.deployment.sql(query, scene.job_id, number)
            name = next(name for name, pid in self.deployment.pids.items() if f":{pid}:" in owner).rpartition("-")[0]
            by = f"attempt {number}, by the worker {name}, from step {step or 0}"
            self.recoveries.append(Recovery(killed, by, seconds or 0.0))

    def losses(self) -> list[str]:
        """Return what is missing, double or different, by the record that the jobs have left."""
        found = []
        if (num_jobs := self._num_jobs() - self._num_jobs_before) != len(self.scenes):
            found.append(f"{num_jobs} jobs for {len(self.scenes)} submissions")
        for scene in self.scenes:
            problems = differences(self.deployment, scene.job_id, self._references[scene.body["devices"]])
            found += [f"{scene.job_id}: {problem}" for problem in problems]
        return found

    def seen_by_visitors(self) -> str:
        """Return what the clients saw that repeat no request."""
        num_requests = sum(visitor.num_requests for visitor in self._visitors)
        failures = sum((visitor.failures for visitor in self._visitors), Counter[str]())
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items()))
        return f"{num_requests} requests, of which {failures.total()} failed{f' ({kinds})' if kinds else ''}"


def play(stack: ExitStack, folder: Path) -> list[str]:
    """Start the fleet, let the jobs go through, write the report, and return what was lost."""
    settings = {"TRD_MAX_DEVICES": "2", "TRD_DEVICES_PER_NODE": "1"}
    deployment = stack.enter_context(Deployment(folder, num_apis=2, **settings))
    theatre = Theatre(deployment)
    say("an undisturbed job of one process has ended")
    both = {"TRD_QUEUES": queue_name(None, 2)}
    deployment.start_worker("torchrun", **both)
    references = {1: theatre.reference, 2: theatre.undisturbed(devices=2)}
    deployment.workers.pop("torchrun").terminate()
    say("an undisturbed job of two processes has ended")

    cluster = stack.enter_context(RayCluster(folder / "cluster"))
    cluster.start_head()
    for name in ("one", "two"):
        cluster.add_node(name, num_devices=1)
    deployment.start_worker("c")
    deployment.start_worker("ray", TRD_LAUNCHER="ray", **both, **cluster.environment)
    say("the fleet has started")

    began = time.monotonic()
    fleet = Fleet(theatre, references, {1: 8, 2: 2})
    fleet.kill_api_while_jobs_are_submitted()
    say("an API was killed, and has started again")
    fleet.kill_worker()
    say("a worker was killed, and has started again")
    fleet.kill_node(cluster)
    say("a node was killed, and another one has joined")
    fleet.finish()
    losses = fleet.losses()
    ids = [scene.job_id for scene in fleet.scenes]
    ((num_attempts,),) = deployment.sql("SELECT count(*) FROM attempts WHERE job_id = ANY(%s)", ids)
    report = report_of(fleet, num_attempts, time.monotonic() - began, losses)
    say(report)
    write_report(fleet=report)
    return losses


def report_of(fleet: Fleet, num_attempts: int, seconds: float, losses: list[str]) -> str:
    """Return the part of the document that is measured."""
    num_jobs, lost = len(fleet.scenes), "; ".join(losses) or "nothing"
    rows = [f"| {r.killed} | {r.recovered_by} | {r.seconds:.1f} s |" for r in fleet.recoveries]
    return "\n".join(
        [
            f"{num_jobs} jobs, {num_attempts} attempts, {seconds:.0f} s; lost: {lost}.",
            "",
            "| killed | recovered by | time to recovery |",
            "|---|---|---|",
            *rows,
            "",
            "The clients that submitted the jobs saw no error: they send a request again, with the same key, if the",
            "connection breaks. Beside them two clients listed the jobs all the time, and repeated nothing: they made",
            f"{fleet.seen_by_visitors()}.",
        ]
    )


def isolate_network() -> None:
    """Leave this process and its children a loopback only: Ray listens on all addresses, whatever its options say."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        say("without root, the network stays: Ray listens on all addresses of this machine, and demands its token")
        return
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def main() -> int:
    """Run the command; return 0 if nothing was lost."""

    def give_up(number: int, _: Any) -> None:
        raise TimeoutError(f"{signal.Signals(number).name}: the fleet is ended")

    signal.signal(signal.SIGTERM, give_up)
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST_SECONDS)
    isolate_network()
    folder = Path(tempfile.mkdtemp(prefix="trd-fleet-", dir="/tmp"))
    say(f"the processes' logs are in {folder}")
    with ExitStack() as stack:
        return 1 if play(stack, folder) else 0


if __name__ == "__main__":
    sys.exit(main())
