"""Jobs of two devices on a Ray cluster of this machine's processes, whose nodes have separate disks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client import JobView
from examples.local_service import LocalService, local_service
from tests.ray_cluster import RayCluster
from tests.servers import die_with_parent
from tests.trd_engine.tiny_runs import write_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ON_THIS_MACHINE = "on-this-machine"
NODES = ("one", "two", "three")


@dataclass
class Scene:
    """A service with a worker of this machine's devices, and one that starts runs on the cluster."""

    service: LocalService
    cluster: RayCluster
    body: dict[str, Any]
    folder: Path

    def create(self, **changes: Any) -> str:
        """Create a job of ten steps, each with a checkpoint: enough that a node can be killed before the last."""
        return self.service.client.jobs.create({**self.body, **changes}).id

    def wait(self, job_id: str, holds: Callable[[JobView], bool], *, seconds: float = 400) -> JobView:
        """Wait until the job is so, or over."""
        deadline = time.monotonic() + seconds
        while not holds(job := self.service.client.jobs.get(job_id)):
            is_over = job.status in ("succeeded", "failed", "cancelled")
            shown = f"{job.status} {job.error} {self.messages(job_id)}"
            assert not is_over, shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
        return job

    def wait_for_checkpoint(self, job_id: str) -> None:
        """Wait until a checkpoint of a step is stored, which may be some steps later."""
        stored = self.service.client.checkpoints
        self.wait(job_id, lambda _: any(checkpoint.step >= 1 for checkpoint in stored.list(job_id)))

    def messages(self, job_id: str) -> list[str]:
        """Return the messages of the job's events."""
        return [event.message for event in self.service.client.events.list(job_id)]

    def attempts(self, job_id: str) -> list[tuple[str, int | None]]:
        """Return the status of each attempt, and the step that it began at; None for the beginning."""
        query = "SELECT status, first_step FROM attempts WHERE job_id = ? ORDER BY number"
        with closing(sqlite3.connect(self.service.data_dir / "trd.db")) as database:
            return database.execute(query, [job_id]).fetchall()

    def result(self, job_id: str) -> dict[str, str]:
        """Return the sha256 of the last checkpoint's model, file by file; each step was recorded once."""
        client = self.service.client
        done = self.wait(job_id, lambda job: job.status == "succeeded")
        (loss,) = client.metrics.list(job_id, names=["loss"])
        assert loss.steps == list(range(1, done.num_steps + 1))
        last = max(client.checkpoints.list(job_id), key=lambda checkpoint: checkpoint.step)
        files = client.checkpoints.manifest(job_id, last.step).files
        return {file.name: file.sha256 for file in files if file.name.startswith("model/")}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("ray")
    data_dir = folder / "service"
    settings = {"TRD_MAX_DEVICES": "2", "TRD_QUEUES": ON_THIS_MACHINE, "OMP_NUM_THREADS": "1"}
    with RayCluster(folder / "cluster") as cluster, local_service(data_dir, settings=settings) as service:
        cluster.start_head()
        for name in NODES:
            cluster.add_node(name, num_devices=1)
        environment = {
            "TRD_DATA_DIR": str(folder / "worker"),
            "DATABASE_URL": f"sqlite:///{data_dir / 'trd.db'}",
            "STORAGE_URL": f"file://{data_dir / 'storage'}",
            "TRD_QUEUES": "trd-default-2",
            "TRD_LAUNCHER": "ray",
            "TRD_DEVICES_PER_NODE": "1",
            "TRD_CHECK_MACHINE": "0",
            **cluster.environment,
        }
        with (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", "--loglevel", "INFO"],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        data = write_data(tmp_path_factory.mktemp("data"), train=48, heldout=8)
        body = {
            "mode": "trd",
            "student": "tiny-student",
            "teacher": "tiny-teacher",
            "dataset": service.client.datasets.upload(data / "train.jsonl").id,
            "task": "exact",
            "devices": 2,
            "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 48},
            "refine": {"max_prompt_tokens": 192, "max_new_tokens": 48},
            "lora": None,
            "optim": {"learning_rate": 1e-3, "batch_size": 8, "epochs": 2},
            "evaluation": {"holdout": 0.1, "k": 2},
            "checkpoints": {"every_steps": 1},
        }
        try:
            yield Scene(service, cluster, body, folder)
        finally:
            worker.kill()
            worker.wait()


@pytest.fixture(scope="module")
def undisturbed(scene: Scene) -> dict[str, str]:
    """The result of two processes of torchrun on one machine."""
    return scene.result(scene.create(queue=ON_THIS_MACHINE))


def test_a_node_is_killed_in_a_step_and_the_job_ends_with_the_weights_of_two_processes_on_one_machine(
    scene: Scene, undisturbed: dict[str, str]
) -> None:
    job_id = scene.create()
    scene.wait_for_checkpoint(job_id)
    busy = [name for name in NODES if list((scene.folder / "cluster" / name / "ray-attempts").glob(f"{job_id}*"))]
    assert len(busy) == 2, "each process of the run is on a separate node"
    scene.cluster.nodes[busy[1]].kill()
    assert scene.result(job_id) == undisturbed
    (first, first_started_at), (second, second_started_at) = scene.attempts(job_id)
    assert (first, first_started_at, second) == ("lost", None, "succeeded")
    assert second_started_at >= 1, "it continued from a checkpoint"
    assert any("lost a node" in message for message in scene.messages(job_id))
    left = [path for name in NODES for path in (scene.folder / "cluster" / name / "ray-attempts").glob("*")]
    assert all(path.parent.parent.name == busy[1] for path in left), "only the dead node's disk has files of the run"


def test_a_cancelled_job_keeps_its_checkpoint_and_frees_its_nodes(scene: Scene) -> None:
    job_id = scene.create(optim={**scene.body["optim"], "epochs": 100})
    scene.wait(job_id, lambda job: (job.step or 0) >= 1)
    scene.service.client.jobs.cancel(job_id)
    scene.wait(job_id, lambda job: job.status == "cancelled", seconds=120)
    assert max(checkpoint.step for checkpoint in scene.service.client.checkpoints.list(job_id)) >= 1
    assert not list((scene.folder / "cluster").glob(f"*/ray-attempts/{job_id}*"))


def test_the_head_is_killed_and_the_job_goes_on_when_there_is_another(
    scene: Scene, undisturbed: dict[str, str]
) -> None:
    job_id = scene.create()
    scene.wait_for_checkpoint(job_id)
    for node in scene.cluster.nodes.values():
        node.kill()
    scene.cluster.start_head()
    for name in NODES[:2]:
        scene.cluster.add_node(name, num_devices=1)
    assert scene.result(job_id) == undisturbed
