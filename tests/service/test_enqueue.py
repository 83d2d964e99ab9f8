from __future__ import annotations

import json
import socket
import threading
import time

import pytest
import redis
from kombu import Connection, Queue

from contract.messages import RUN_JOB_TASK
from service.enqueue import MAX_RINGS_A_SECOND, Doorbell
from tests.servers import free_port


def receive(url: str, count: int) -> list[str]:
    """Return the job ids of `count` waiting messages; fail if there are more."""
    found: list[str] = []
    with Connection(url) as connection:
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


def test_without_a_broker_nothing_is_sent_and_nothing_is_wrong() -> None:
    bell = Doorbell(None)
    began = time.monotonic()
    assert bell.is_reachable()
    ring_all(bell, *(f"job_{number}" for number in range(5_000)))
    assert time.monotonic() - began < 10


def test_redis_carries_ids_to_a_worker(redis_url: str) -> None:
    bell = Doorbell(redis_url)
    assert bell.is_reachable()
    ring_all(bell, "job_a", "job_b")
    assert receive(redis_url, 2) == ["job_a", "job_b"]


def test_one_queue_gets_a_limited_number_of_messages_a_second(redis_url: str) -> None:
    ring_all(Doorbell(redis_url), *(f"job_{number}" for number in range(500)))
    with redis.Redis.from_url(redis_url) as client:
        assert MAX_RINGS_A_SECOND <= client.llen("trd-default") <= 4 * MAX_RINGS_A_SECOND  # a few seconds at most


def test_a_broker_that_is_down_holds_nobody_up() -> None:
    bell = Doorbell(f"redis://127.0.0.1:{free_port()}/0")
    began = time.monotonic()
    bell.ring("job_a", "trd-default")
    assert time.monotonic() - began < 2
    assert not bell.is_reachable()
    bell.close()
    assert time.monotonic() - began < 10


def test_one_asks_a_broker_that_hangs_and_the_others_do_not_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bell = Doorbell(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        first = threading.Thread(target=bell.is_reachable)
        first.start()
        with silent.accept()[0]:
            began = time.monotonic()
            assert [bell.is_reachable() for _ in range(100)] == [False] * 100
            assert time.monotonic() - began < 3
            assert first.is_alive()
            first.join(30)
        bell.close()


def test_the_thread_outlives_a_failure(redis_url: str) -> None:
    bell = Doorbell(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.set("trd-default", "not a list")  # pushing onto it fails
        bell.ring("job_lost", "trd-default")
        deadline = time.monotonic() + 10
        while bell._room._value < 1000 and time.monotonic() < deadline:
            time.sleep(0.02)
        client.delete("trd-default")
    ring_all(bell, "job_b")
    assert receive(redis_url, 1) == ["job_b"]
