"""Whatever somebody puts into the broker, the worker drops and logs it, and continues."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from contract.messages import RUN_JOB_TASK
from tests.servers import die_with_parent
from tests.worker.workbench import eventually
from worker.doorbells import NOT_A_DOORBELL, _job_id

QUEUE = "trd-default"
MISSING = object()
DOORBELL = (["job_a"], {}, {})


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def message(body: Any = DOORBELL, /, **changes: Any) -> str:
    """Write a doorbell as Celery does; ``headers__task=x`` replaces a part, `MISSING` removes it."""
    written: dict[str, Any] = {
        "body": encoded(body if isinstance(body, bytes) else json.dumps(body).encode()),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": RUN_JOB_TASK, "id": "an-id", "root_id": "an-id", "lang": "py", "retries": 0, "eta": None},
        "properties": {
            "correlation_id": "an-id",
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "delivery_tag": "a-tag",
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    for path, value in changes.items():
        *above, name = path.split("__")
        place = written[above[0]] if above else written
        place[name.replace("content_", "content-")] = value
        if value is MISSING:
            del place[name.replace("content_", "content-")]
    return json.dumps(written)


ODD: list[Any] = [None, [], {}, 5, "x", ["a"], {"a": 1}, MISSING]
NO_JSON = ["", "nonsense", b"\xff\xfe\0", "null", "[]", "1", "{}", '"x"', message()[:100], "\0", "[" * 100_000, "NaN"]
NO_VALUES = [
    json.dumps({"__type__": kind, "__value__": value})
    for kind in ("datetime", "date", "decimal", "uuid", "x", [])
    for value in (5, "x", None, {}, {"hex": "x"})
]
"""Texts that kombu would turn into values of other types."""
PARTS = [
    *("body", "content_type", "content_encoding", "headers", "properties"),
    *("headers__task", "headers__id", "headers__eta", "headers__expires", "headers__timelimit", "headers__retries"),
    *("headers__group", "headers__compression", "headers__root_id", "headers__stamps", "headers__argsrepr"),
    *("properties__delivery_tag", "properties__delivery_info", "properties__body_encoding", "properties__priority"),
]
BODIES = [
    *(b"{", b"\xff", b"", pickle.dumps([1]), None, "x", 7, {}, [], [1], [[], {}, {}], ["abc", {}, {}], [1, {}, {}]),
    *([["a", "b"], {}, {}], [[{}], {}, {}], [[None], {}, {}], [["job_" + "x" * 200_000], {}, {}], [["../x"], {}, {}]),
    *([["os.system"], {}, {}], [["job_a\n"], {}, {}], [[["job_a"]], {}, {}]),
]
OTHERS = [
    message(headers__task="os.system"),
    message(headers__task="celery.backend_cleanup"),
    message(headers__task="celery.map"),
    message(headers__task=RUN_JOB_TASK + "\0"),
    message(pickle.dumps(["x"]), content_type="application/x-python-serialize"),
    message(headers__eta="9999-12-31T23:59:59+00:00"),
    message(headers__expires="2001-01-01T00:00:00"),
    message(headers__timelimit=[-1, -1]),
    message(properties__body_encoding="rot13"),
    message([["job_a"], {}, {"chain": [1], "chord": 1, "callbacks": [{"task": "x"}], "errbacks": [1]}]),
    message({"task": RUN_JOB_TASK, "id": "x", "args": 5, "kwargs": {}, "eta": "x"}, headers={}),
    message([["job_a"], [1], None]),
]
SHAPES = [
    *NO_JSON,
    *NO_VALUES,
    *(message(**{part: value}) for part in PARTS for value in ODD),
    *(message(body) for body in BODIES),
    *OTHERS,
]


def becomes_doorbell(raw: str | bytes) -> bool:
    """Return True if a job id is taken from the message; whatever else is odd about it then does not matter."""
    try:
        return _job_id(json.loads(raw)) == "job_a"
    except NOT_A_DOORBELL:
        return False


@contextmanager
def worker(database_url: str, redis_url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker process as an operator does; it looks for jobs only when it is rung."""
    environment = {**os.environ, "DATABASE_URL": database_url, "BROKER_URL": redis_url, "TRD_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", "--loglevel", "info"]
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env={**environment, "TRD_POLL_SECONDS": "600"},
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_no_message_ends_the_worker(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    def num_logged(words: str) -> int:
        return (tmp_path / "worker.log").read_text(errors="replace").count(words)

    with worker(sqlite_url, redis_url, tmp_path) as process, redis.Redis.from_url(redis_url) as broker:
        broker.lpush(QUEUE, message())
        eventually(lambda: num_logged("succeeded in") == 1, seconds=60)
        # Celery takes a second between doorbells: of what becomes one here, three are enough.
        odd = [shape for shape in SHAPES if not becomes_doorbell(shape)]
        harmless = [shape for shape in SHAPES if becomes_doorbell(shape)]
        assert (len(odd), len(harmless)) > (50, 50)
        for shape in [*odd, *harmless[:3]]:
            broker.lpush(QUEUE, shape)
            broker.publish("/0.celery.pidbox", shape)
            broker.publish("/0.celeryev/worker.heartbeat", shape)
        eventually(lambda: broker.llen(QUEUE) == 0 or process.poll() is not None, seconds=60)
        num_done = num_logged("succeeded in")
        broker.lpush(QUEUE, message())
        eventually(lambda: num_logged("succeeded in") > num_done or process.poll() is not None, seconds=60)
        assert process.poll() is None, (tmp_path / "worker.log").read_text()[-2000:]
        assert num_logged("no doorbell was dropped") == len(odd)
        assert broker.keys("*unacked*") == []


@pytest.mark.parametrize("job_id", ["job_a", "job_01k0zzzzzzzzzz"])
def test_a_doorbell_carries_a_job_id_and_nothing_else(job_id: str) -> None:
    assert _job_id(json.loads(message([[job_id], {"x": 1}, None], headers__eta="soon"))) == job_id
