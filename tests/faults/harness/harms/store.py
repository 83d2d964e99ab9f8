"""Harm to the object store, to what it holds, and a restore of everything from a backup."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from tests.faults.harness.scene import ENDED, Scene
from tests.servers import find_postgres_programs
from tests.worker.workbench import eventually


def fails_uploads(kind: str, count: int) -> Callable[[Scene], None]:
    """Return a case in which requests that write checkpoints fail for a while."""

    def inject(scene: Scene) -> None:
        scene.until_phase("rollout")
        fault = scene.deployment.store_proxy.fail(kind, path="/attempt-", count=count)
        eventually(lambda: fault.num_hit > 0, seconds=120)
        scene.mark()

    return inject


def disk_full(scene: Scene) -> None:
    """Let the store have no room for checkpoints until somebody frees some, half a minute later."""
    scene.until_phase("rollout")
    fault = scene.deployment.store_proxy.fail("507", method="PUT", path="/attempt-")
    eventually(lambda: fault.num_hit > 0, seconds=120)
    scene.mark()
    time.sleep(30)
    scene.deployment.store_proxy.heal()


def fails_staging(kind: str, count: int) -> Callable[[Scene], None]:
    """Return a case in which the next attempt's reads of its checkpoint and its data fail for a while."""

    def inject(scene: Scene) -> None:
        scene.until_step(2)
        (child,) = scene.holder().children()
        os.killpg(child, signal.SIGSTOP)  # a run of tiny models may be over before its first checkpoint is stored
        scene.until_stored(1)
        fault = scene.deployment.store_proxy.fail(kind, method="GET", path="/trd/", count=count)
        scene.mark()
        scene.kill_child()
        eventually(lambda: fault.num_hit > 0, seconds=120)

    return inject


def damage(what: str) -> Callable[[Scene], None]:
    """Return a case in which the newest checkpoint is damaged before the next attempt reads it."""

    def inject(scene: Scene) -> None:
        d = scene.deployment
        scene.until_stored(2)
        scene.mark()
        scene.holder().kill()
        prefix = scene.newest_checkpoint()
        if what == "manifest":
            d.stored.delete(f"{prefix}/manifest.json")
            return
        name = next(f["path"] for batch in d.stored.list(f"{prefix}/state") for f in batch if f["size"] > 1000)
        content = bytes(d.stored.get(name).bytes())
        flipped = content[:500] + bytes([content[500] ^ 1]) + content[501:]
        d.stored.put(name, content[: len(content) // 2] if what == "truncated" else flipped)

    return inject


def restore_backup(scene: Scene) -> None:
    """Back up as docs/operations.md says, continue for a while, lose everything, and restore into empty places."""
    d = scene.deployment
    programs, url = find_postgres_programs(), d.database_url.replace("+psycopg", "")
    dump = d.folder / f"{scene.job_id}.dump"
    files: dict[str, bytes] = {}

    def copy_what_is_new() -> None:
        for name in [meta["path"] for page in d.stored.list() for meta in page]:
            with suppress(FileNotFoundError):  # the job has replaced a checkpoint meanwhile
                if name not in files:
                    files[name] = bytes(d.stored.get(name).bytes())

    copy_what_is_new()  # of earlier jobs: during the copy of all of it this one could end
    scene.until_stored(1)
    copy_what_is_new()
    subprocess.run([programs / "pg_dump", "--format=custom", f"--file={dump}", url], check=True)
    copy_what_is_new()
    time.sleep(3)  # whatever happens in it, be it the end of the job, is lost
    scene.mark()
    for worker in d.workers.values():
        children = worker.children()
        worker.kill()
        d.wait_until_all_ended(children)
    for api in d.apis:
        api.kill()
    for page in d.stored.list():
        d.stored.delete([meta["path"] for meta in page])
    subprocess.run([programs / "pg_restore", "--clean", "--if-exists", f"--dbname={url}", dump], check=True)
    assert scene.status() not in ENDED, "the job ended before the backup"
    for name, content in files.items():
        d.stored.put(name, content)
    d.start_apis()
    d.until_apis_answer()
    for name in ("a", "b"):
        d.start_worker(name)
