"""The table of faults: each is done to a job that runs, and the job must end as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import redis

from service.enqueue import Doorbell
from tests.faults.harness.deployment import Worker
from tests.faults.harness.scene import ENDED, Case, Scene
from tests.servers import find_postgres_programs
from tests.worker.test_malformed_messages import OTHERS, message
from tests.worker.workbench import eventually

QUEUE = "trd-default"
MEMORY_GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


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
    scene.deployment.api.kill()
    request.join()
    scene.deployment.start_api()
    scene.submit(**headers)
    ((count,),) = scene.deployment.sql(
        "SELECT count(*) FROM jobs WHERE idempotency_key = %s", headers["idempotency-key"]
    )
    assert count == 1, f"{count} jobs for one request"


def _submit_to_a_dying_api(scene: Scene, headers: dict[str, str]) -> None:
    with suppress(httpx.TransportError):
        Scene(scene.deployment, scene.dataset_id).submit(**headers)


def kill_api(scene: Scene) -> None:
    scene.until_step(2)
    scene.mark()
    scene.deployment.api.kill()
    eventually(lambda: scene.status() in ENDED, seconds=120)
    scene.deployment.start_api()
    answer = scene.deployment.client.get(f"/jobs/{scene.job_id}/events", headers={"accept": "text/event-stream"})
    assert "has succeeded" in answer.text


def freeze_supervisor(scene: Scene) -> None:
    """Its child trains on while it is stopped, and it is continued when another attempt trains."""
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


def redis_killed(scene: Scene) -> None:
    scene.mark()
    scene.deployment.redis.crash()


def redis_empty(scene: Scene) -> None:
    scene.until_step(1)
    scene.mark()
    scene.deployment.redis.crash()
    time.sleep(2)
    scene.deployment.redis.revive()


def redis_paused(scene: Scene) -> None:
    scene.mark()
    scene.deployment.redis.send(signal.SIGSTOP)


def postgres_restarted_at_commit(scene: Scene) -> None:
    """End the server before the row of a checkpoint is committed, without a shutdown, and start it again."""
    proxy, server = scene.deployment.database_proxy, scene.deployment.postgres
    reached, restarted = threading.Event(), threading.Event()

    def at_commit() -> None:
        reached.set()
        restarted.wait(60)

    proxy.before_commit = (b"INSERT INTO checkpoints ", at_commit)
    assert reached.wait(240)
    scene.mark()
    server.crash(signal.SIGQUIT)  # "immediate": it recovers from its log at the next start
    server.revive()
    restarted.set()


def postgres_answers_lost(scene: Scene) -> None:
    """Lose the answers to commits: of events, of a checkpoint, of old ones' removal, and of the attempt's end."""
    scene.until_phase("rollout")
    scene.mark()
    proxy = scene.deployment.database_proxy
    texts = [
        "INSERT INTO job_events",
        "INSERT INTO checkpoints ",
        "DELETE FROM checkpoints ",
        "INSERT INTO metric_points",
        "UPDATE attempts SET status",
    ]
    proxy.lose_answers_of_commits(*texts)
    eventually(lambda: scene.status() in ENDED, seconds=240)
    assert proxy.num_lost >= 3, proxy.num_lost


def postgres_claim_lost(scene: Scene) -> None:
    """Lose the answer to the commit of the claim: the job runs by its row, and nobody knows that it is his."""
    scene.mark()
    scene.until_attempt(1)


def _lose_claim(scene: Scene) -> None:
    scene.deployment.database_proxy.lose_answers_of_commits("INSERT INTO attempts")


def postgres_connections_cut(scene: Scene) -> None:
    """End every connection, one after the other, again and again for eight seconds."""
    scene.until_phase("rollout")
    scene.mark()
    until = time.monotonic() + 8
    while time.monotonic() < until:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name <> '' AND datname = current_database()"
        for (pid,) in scene.deployment.sql(query):
            scene.deployment.sql("SELECT pg_terminate_backend(%s)", pid)
            time.sleep(0.1)


def postgres_away(scene: Scene) -> None:
    """Stop the server for longer than a lease lasts."""
    scene.until_step(1)
    scene.mark()
    scene.deployment.postgres.crash(signal.SIGQUIT)
    time.sleep(9)
    scene.deployment.postgres.revive()


def store_fails_uploads(kind: str, count: int) -> Callable[[Scene], None]:
    """Return a case in which requests that write checkpoints fail for a while."""

    def inject(scene: Scene) -> None:
        scene.until_phase("rollout")
        fault = scene.deployment.store_proxy.fail(kind, path="/attempt-", count=count)
        eventually(lambda: fault.num_hit > 0, seconds=120)
        scene.mark()

    return inject


def store_fails_staging(kind: str, count: int) -> Callable[[Scene], None]:
    """Return a case in which the next attempt's reads of its checkpoint and its data fail for a while."""

    def inject(scene: Scene) -> None:
        scene.until_stored(2)
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


def strange_messages(scene: Scene) -> None:
    """Fill the queue with the job's doorbell twenty times, with old and unknown jobs' first, and with forged ones."""
    d = scene.deployment
    scene.mark()
    others = [row[0] for row in d.sql("SELECT id FROM jobs ORDER BY id DESC LIMIT 3")]
    bell = Doorbell(d.redis.url)
    for job_id in (*others, "job_that_never_was", *[scene.job_id] * 20, *reversed(others)):
        bell.ring(job_id, QUEUE)
    bell.close()
    with redis.Redis.from_url(d.redis.url) as broker:
        for forged in (*OTHERS, message(([scene.job_id], {}, {}), headers__task="os.system"), "{", b"\xff"):
            broker.lpush(QUEUE, forged)


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


def only_worker(scene: Scene, folder: Path | None = None, **environment: str) -> Worker:
    """Stop the two workers, and start one of its own kind."""
    for name in ("a", "b"):
        scene.deployment.workers[name].kill()
    name = f"other-{len(scene.deployment.pids)}"
    return scene.deployment.start_worker(name, folder=folder, **environment)


CLOCK = r"""
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
extern "C" int clock_gettime(clockid_t id, struct timespec *at) {
    static auto real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && id == CLOCK_REALTIME) at->tv_sec += atol(getenv("CLOCK_OFFSET_SECONDS"));
    return failed;
}
"""
"""Shifts the wall clock of a process, and leaves the monotonic one. (libfaketime 0.9.10 breaks Python's sleep.)"""


def _clock(scene: Scene, hours: int) -> dict[str, str]:
    library = scene.deployment.folder / "clock.so"
    if not library.exists():
        command = ["g++", "-x", "c++", "-", "-shared", "-fPIC", "-ldl", "-o", str(library)]
        subprocess.run(command, input=CLOCK.encode(), check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET_SECONDS": str(3600 * hours)}


def clock_ahead_then_behind(scene: Scene) -> None:
    """The first worker's clock is an hour ahead; it is killed, and one whose clock is an hour behind goes on."""
    scene.until_step(1)
    scene.mark()
    scene.holder().kill()
    scene.deployment.start_worker("behind", **_clock(scene, -1))


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


def old_worker(scene: Scene) -> None:
    """The database has a newer schema's columns, and the job a newer spec's field, until the worker is replaced."""
    d = scene.deployment
    scene.mark()
    scene.until_attempt_ended(1)
    ((status, code),) = d.sql("SELECT status, error_code FROM attempts WHERE job_id = %s", scene.job_id)
    assert (scene.status(), code) == ("queued", "worker_outdated"), (scene.status(), status, code)
    # The newer worker, which knows the field.
    d.sql("UPDATE jobs SET spec = (spec::jsonb - 'newer_option')::json WHERE id = %s", scene.job_id)


def _newer_schema(scene: Scene) -> None:
    d = scene.deployment
    for table in ("jobs", "attempts", "metric_points", "checkpoints", "trajectories"):
        d.sql(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS of_a_newer_version text")
    d.sql("CREATE TABLE IF NOT EXISTS of_a_newer_version (id text)")
    workers = [d.workers[name] for name in ("a", "b")]
    for worker in workers:
        worker.send(signal.SIGSTOP)
    scene.submit()
    d.sql("UPDATE jobs SET spec = (spec::jsonb || '{\"newer_option\": 1}')::json WHERE id = %s", scene.job_id)
    for worker in workers:
        worker.send(signal.SIGCONT)


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A disk of its own, which only root can mount."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of a disk; return the file that takes it all."""
    filler = folder / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(b"x" * 2**16)
            file.flush()
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x")
    return filler


def disk_full(phase: str) -> Callable[[Scene], None]:
    """Return a case in which the worker's disk fills up in a phase, and has room again after the attempt."""

    def inject(scene: Scene) -> None:
        with small_disk(scene.deployment.folder / "small", megabytes=96) as disk:
            worker = only_worker(scene, disk)
            if phase == "staging":
                scene.until_step(1)
                number = 2
                worker.send(signal.SIGSTOP)
                scene.kill_child()
                filler = fill(disk)
                worker.send(signal.SIGCONT)
                scene.until_attempt_ended(1)
            else:
                scene.until_phase(phase, times=2)
                number = 1
                filler = fill(disk)
            scene.mark()
            scene.until_attempt_ended(number)
            codes = scene.deployment.sql(
                "SELECT error_code FROM attempts WHERE job_id = %s AND number = %s", scene.job_id, number
            )
            filler.unlink()
            assert codes == [("disk_full",)], codes
            eventually(lambda: scene.status() in ENDED, seconds=240)

    return inject


def _nobody(scene: Scene) -> None:
    """The job waits until the case has started its own worker."""
    for name in ("a", "b"):
        scene.deployment.workers[name].kill()


def _one_worker(scene: Scene) -> None:
    scene.deployment.workers["b"].kill()


def _ahead(scene: Scene) -> None:
    only_worker(scene, **_clock(scene, 1))


@contextmanager
def memory_group(*pids: int) -> Iterator[Path]:
    """A memory group with these processes, which only root can make; the processes left in it are killed at the end."""
    group = next(path for path in MEMORY_GROUPS if (path / "cgroup.procs").exists()) / f"trd-faults-{os.getpid()}"
    group.mkdir()
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def host_out_of_memory(scene: Scene) -> None:
    """Let another program take all memory of the worker's group, so that the kernel kills the engine."""
    d = scene.deployment
    with memory_group(d.workers["a"].pid) as group:
        scene.submit()
        scene.until_step(1)
        (child,) = scene.holder().children()
        Path(f"/proc/{child}/oom_score_adj").write_text("1000")  # the small engine is not the biggest process
        is_v2 = (group / "memory.max").exists()
        used = int((group / ("memory.current" if is_v2 else "memory.usage_in_bytes")).read_text())
        (group / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(used + 2**27))
        scene.mark()
        subprocess.run([sys.executable, "-c", HOG, str(group / "cgroup.procs"), str(child)], timeout=120, check=True)
        scene.until_attempt_ended(1)
        codes = d.sql("SELECT error_code FROM attempts WHERE job_id = %s AND number = 1", scene.job_id)
        assert codes == [("host_out_of_memory",)], codes
        eventually(lambda: scene.status() in ENDED, seconds=240)


def _job_for_later(scene: Scene) -> None:
    _one_worker(scene)
    scene.job_id = "submitted by the case"


HOG = """
import os, sys
open("/proc/self/oom_score_adj", "w").write("-1000")
open(sys.argv[1], "w").write(str(os.getpid()))
taken = []
while os.path.exists(f"/proc/{sys.argv[2]}/exe"):
    taken.append(bytearray(b"x" * 2**20))
"""


def restore_backup(scene: Scene) -> None:
    """Back up as docs/operations.md says, go on for a while, lose everything, and restore into empty places."""
    d = scene.deployment
    programs, url = find_postgres_programs(), d.database_url.replace("+psycopg", "")
    dump = d.folder / f"{scene.job_id}.dump"
    scene.until_stored(2)
    subprocess.run([programs / "pg_dump", "--format=custom", f"--file={dump}", url], check=True)
    files = {meta["path"]: bytes(d.stored.get(meta["path"]).bytes()) for page in d.stored.list() for meta in page}
    scene.until_step(4)
    scene.mark()
    for worker in d.workers.values():
        children = worker.children()
        worker.kill()
        d.wait_until_all_ended(children)
    d.api.kill()
    for page in d.stored.list():
        d.stored.delete([meta["path"] for meta in page])
    subprocess.run([programs / "pg_restore", "--clean", "--if-exists", f"--dbname={url}", dump], check=True)
    for name, content in files.items():
        d.stored.put(name, content)
    d.start_api()
    for name in ("a", "b"):
        d.start_worker(name)


CASES = [
    Case("the engine's process is killed with signal 9", kill_child),
    Case("the worker is killed with signal 9", kill_supervisor),
    Case("the worker and its engine are killed at once", kill_group, in_ci=True),
    Case("the API is killed while a job runs", kill_api),
    Case("the API is killed while it creates the job, and asked again", lambda _: None, before=kill_api_and_redo),
    Case("the worker is frozen beyond its lease, and goes on beside the next attempt", freeze_supervisor, in_ci=True),
    Case("the worker and its engine are frozen beyond the lease, and go on", freeze_group),
    Case("Redis is killed before the job is submitted", lambda _: None, before=redis_killed),
    Case("Redis is killed, and comes back empty", redis_empty, in_ci=True),
    Case("Redis is paused before the job is submitted", lambda _: None, before=redis_paused),
    Case("PostgreSQL is restarted while a checkpoint is committed", postgres_restarted_at_commit, in_ci=True),
    Case("PostgreSQL's answers to commits are lost", postgres_answers_lost, in_ci=True),
    Case("PostgreSQL's answer to the claim is lost", postgres_claim_lost, before=_lose_claim, in_ci=True),
    Case("PostgreSQL's connections are cut one by one for 8 s", postgres_connections_cut, in_ci=True),
    Case("PostgreSQL is away for longer than the lease", postgres_away),
    Case("the store answers 500 to twelve requests of uploads", store_fails_uploads("500", 12)),
    Case("the store answers 503 SlowDown to twelve requests of uploads", store_fails_uploads("503", 12)),
    Case("the store does not answer two requests of uploads", store_fails_uploads("hang", 2)),
    Case("the store answers 500 to reads of the next attempt", store_fails_staging("500", 4)),
    Case("the store cuts three bodies short", store_fails_staging("cut", 3)),
    Case("the store sends half of a body as if it were all", store_fails_staging("short", 1), in_ci=True),
    Case("the store sends a wrong byte once", store_fails_staging("flip", 1), in_ci=True),
    Case("the newest checkpoint is truncated", damage("truncated")),
    Case("a byte of the newest checkpoint is flipped", damage("flipped"), in_ci=True),
    Case("the newest checkpoint's manifest is missing", damage("manifest")),
    Case("the disk is full while the run saves", disk_full("saving"), before=_nobody),
    Case("the disk is full while an attempt is staged", disk_full("staging"), before=_nobody),
    Case("the disk is full while the run trains", disk_full("training"), before=_nobody),
    Case("messages are doubled, reordered and forged", strange_messages, in_ci=True),
    Case("two reapers lead at once", two_reapers),
    Case("a worker's clock is an hour ahead, the next one's an hour behind", clock_ahead_then_behind, before=_ahead),
    Case("a worker is older than the schema and the job's spec", old_worker, before=_newer_schema),
    Case("the worker is deployed anew in every phase", deploy_in_every_phase, before=_one_worker),
    Case("the machine runs out of memory", host_out_of_memory, before=_job_for_later),
    Case("everything is lost, and restored from a backup", restore_backup, in_ci=True),
]
