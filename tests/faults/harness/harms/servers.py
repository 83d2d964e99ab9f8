"""Harm to PostgreSQL and Redis, and to what they hold."""

from __future__ import annotations

import signal
import threading
import time

import redis

from service.enqueue import Doorbell
from tests.faults.harness.scene import ENDED, Scene
from tests.worker.test_malformed_messages import OTHERS, message
from tests.worker.workbench import eventually

QUEUE = "trd-default"


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


def lose_claim(scene: Scene) -> None:
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


def old_worker(scene: Scene) -> None:
    """Give the database a newer schema's columns, and the job a newer spec's field, until the worker is replaced."""
    d = scene.deployment
    scene.mark()
    scene.until_attempt_ended(1)
    ((status, code),) = d.sql("SELECT status, error_code FROM attempts WHERE job_id = %s", scene.job_id)
    assert (scene.status(), code) == ("queued", "worker_outdated"), (scene.status(), status, code)
    # The newer worker, which knows the field.
    d.sql("UPDATE jobs SET spec = (spec::jsonb - 'newer_option')::json WHERE id = %s", scene.job_id)


def newer_schema(scene: Scene) -> None:
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
