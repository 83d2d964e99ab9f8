"""Harm to processes: killed, frozen, deployed, two at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import httpx

from tests.faults.harness.scene import ENDED, Scene
from tests.worker.workbench import eventually


def kill_child(scene: Scene) -> None:
    scene.until_step(2)
    scene.mark()
    scene.kill_child()


def kill_supervisor(scene: Scene) -> None:
    scene.until_step(2)
    scene.mark()
    worker = scene.holder()
    children = worker.children()
    worker.kill()
    scene.deployment.wait_until_all_ended(children)


def kill_group(scene: Scene) -> None:
    scene.until_step(2)
    scene.mark()
    worker = scene.holder()
    children = worker.children()
    for child in children:
        os.killpg(child, signal.SIGKILL)
    worker.kill()
    scene.deployment.wait_until_all_ended(children)


def kill_api_and_redo(scene: Scene) -> None:
    """Kill the API while it creates the job; the client sends the request again with the same key."""
    headers = {"idempotency-key": f"once-{time.time()}"}
    request = threading.Thread(target=_submit_to_a_dying_api, args=[scene, headers])
    request.start()
    time.sleep(0.02)
    scene.mark()
    scene.deployment.apis[0].kill()
    request.join()
    scene.deployment.start_apis()
    scene.deployment.until_apis_answer()
    scene.submit(**headers)
    ((count,),) = scene.deployment.sql(
        "SELECT count(*) FROM jobs WHERE idempotency_key = %s", headers["idempotency-key"]
    )
    assert count == 1, f"{count} jobs for one request"


def _submit_to_a_dying_api(scene: Scene, headers: dict[str, str]) -> None:
    with suppress(httpx.TransportError):
        Scene(scene.deployment, scene.body).submit(**headers)


def kill_api(scene: Scene) -> None:
    scene.until_step(2)
    scene.mark()
    scene.deployment.apis[0].kill()
    eventually(lambda: scene.status() in ENDED, seconds=120)
    scene.deployment.start_apis()
    scene.deployment.until_apis_answer()
    answer = scene.deployment.client.get(f"/jobs/{scene.job_id}/events", headers={"accept": "text/event-stream"})
    assert "has succeeded" in answer.text


def freeze_supervisor(scene: Scene) -> None:
    """Stop the supervisor while its child trains on; continue it when another attempt trains."""
    scene.until_step(1)
    scene.mark()
    worker = scene.holder()
    worker.send(signal.SIGSTOP)
    scene.until_attempt(2)
    scene.until_phase("training")
    worker.send(signal.SIGCONT)


def freeze_group(scene: Scene) -> None:
    scene.until_step(1)
    scene.mark()
    worker = scene.holder()
    (child,) = worker.children()
    worker.send(signal.SIGSTOP)
    os.killpg(child, signal.SIGSTOP)
    scene.until_attempt(2)
    os.killpg(child, signal.SIGCONT)
    worker.send(signal.SIGCONT)


def two_reapers(scene: Scene) -> None:
    """Let both workers lead at every turn, while a third one's lease expires."""
    d = scene.deployment
    scene.until_step(1)
    scene.mark()
    scene.holder().kill()
    d.start_worker("c")
    while scene.status() == "running" and len(d.sql("SELECT 1 FROM attempts WHERE job_id = %s", scene.job_id)) == 1:
        d.sql("UPDATE leader_leases SET expires_at = now() - interval '1 hour'")
        time.sleep(0.02)


def deploy_in_every_phase(scene: Scene) -> None:
    """Shut the only worker down and start it again, in one phase after the other of the same job."""
    d = scene.deployment
    scene.mark()
    phases = ["", "preparing", "rollout", "refining", "evaluating", "diagnosing", "saving", "training"]
    for number, phase in enumerate(phases, start=1):
        scene.until_attempt(number)
        worker = scene.holder()
        if phase:
            scene.until_phase(phase)
        assert worker.terminate() == 0, worker.log.read_text()[-2000:]
        d.start_worker("a")
    statuses = d.sql("SELECT status, error_code FROM attempts WHERE job_id = %s ORDER BY number", scene.job_id)
    assert all(status in ("stopped", "running") for status, _ in statuses), statuses
