from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest
import redis
from kombu import Connection, Queue

from contract.broker import broker_settings
from contract.messages import RUN_JOB_TASK
from service.enqueue import MAX_RINGS_A_SECOND, Doorbell
from tests.servers import free_port


def receive(url: str | None, data_dir: Path, count: int) -> list[str]:
    """Job ids that a consumer of the shared settings finds waiting: `count`, and then no more."""
    settings = broker_settings(url, data_dir)
    found: list[str] = []
    options = settings["broker_transport_options"]
    with Connection(settings["broker_url"], transport_options=options) as connection:
        channel = connection.SimpleQueue(Queue("trd-default", routing_key="trd-default"))
        for _ in range(count):
            message = channel.get(timeout=5)
            assert message.headers["task"] == RUN_JOB_TASK
            found.append(json.loads(message.body)[0][0])
            message.ack()
        with pytest.raises(channel.Empty):
            channel.get(block=False)
        channel.close()
    return found


def ring_all(bell: Doorbell, *job_ids: str) -> None:
    for job_id in job_ids:
        bell.ring(job_id, "trd-default")
    bell.close()


def test_the_embedded_broker_carries_ids_to_a_worker(tmp_path: Path) -> None:
    ring_all(Doorbell(None, tmp_path), "job_a", "job_b")
    assert sorted(receive(None, tmp_path, 2)) == ["job_a", "job_b"]


def test_redis_carries_ids_to_a_worker(redis_url: str, tmp_path: Path) -> None:
    bell = Doorbell(redis_url, tmp_path)
    assert bell.is_reachable()
    ring_all(bell, "job_a")
    assert receive(redis_url, tmp_path, 1) == ["job_a"]


def test_a_message_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    bell = Doorbell(None, tmp_path)
    folder = tmp_path / "broker" / "messages"
    broken: list[str] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            for path in folder.glob("*.msg"):
                if not path.read_text().endswith("}"):
                    broken.append(path.name)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(300):
        bell.ring(f"job_{number}", f"queue-{number}")  # one queue's are cut off when they come too fast
    bell.close()
    is_over.set()
    watcher.join(10)
    assert broken == []
    assert len(list(folder.glob("*.msg"))) == 300
    assert [path for path in folder.iterdir() if path.suffix != ".msg"] == []


def test_a_bell_that_rings_already_is_not_rung_for_every_job(tmp_path: Path) -> None:
    ring_all(Doorbell(None, tmp_path), *(f"job_{number}" for number in range(500)))
    num_messages = len(list((tmp_path / "broker" / "messages").glob("*.msg")))
    assert MAX_RINGS_A_SECOND <= num_messages <= 4 * MAX_RINGS_A_SECOND  # of a few seconds at most


def test_a_broker_that_is_down_holds_nobody_up(tmp_path: Path) -> None:
    bell = Doorbell(f"redis://127.0.0.1:{free_port()}/0", tmp_path)
    began = time.monotonic()
    bell.ring("job_a", "trd-default")
    assert time.monotonic() - began < 0.2
    assert not bell.is_reachable()
    bell.close()
    assert time.monotonic() - began < 10


def test_one_asks_a_broker_that_hangs_and_the_others_do_not_wait(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bell = Doorbell(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", tmp_path)
        first = threading.Thread(target=bell.is_reachable)
        first.start()
        with silent.accept()[0]:
            began = time.monotonic()
            assert [bell.is_reachable() for _ in range(100)] == [False] * 100
            assert time.monotonic() - began < 1
            assert first.is_alive()
            first.join(30)
        bell.close()


def test_the_thread_outlives_a_failure(redis_url: str, tmp_path: Path) -> None:
    bell = Doorbell(redis_url, tmp_path)
    with redis.Redis.from_url(redis_url) as client:
        client.set("trd-default", "not a list")  # pushing onto it fails
        bell.ring("job_lost", "trd-default")
        deadline = time.monotonic() + 10
        while bell._room._value < 1000 and time.monotonic() < deadline:
            time.sleep(0.02)
        client.delete("trd-default")
    ring_all(bell, "job_b")
    assert receive(redis_url, tmp_path, 1) == ["job_b"]
