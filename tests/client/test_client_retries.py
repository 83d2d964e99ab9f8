"""What is sent again, and what is not, over connections that break."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from client import AsyncClient, Client, ClientSettings
from client.call import is_worth_repeating, pause_seconds
from client.errors import ConnectionFailedError, Refusal, TimedOutError, api_error
from client.jobs import JobFilter
from tests.client.breaking_proxy import BreakingProxy
from tests.client.conftest import spec_of
from tests.service.conftest import ADMIN_KEY
from tests.service.live_server import live_server


def test_a_lost_answer_makes_one_job(trd: Client, through_proxy: Client, proxy: BreakingProxy, rows_file: Path) -> None:
    spec = {**spec_of(trd.datasets.upload(rows_file).id), "tags": ["lost-answer"]}
    proxy.cut_after.extend([20, 20])
    job = through_proxy.jobs.create(spec)
    assert proxy.num_connections == 3
    assert [row.id for row in trd.jobs.list(JobFilter(tag="lost-answer"))] == [job.id]


def test_a_lost_answer_to_an_upload_is_not_sent_again(
    through_proxy: Client, proxy: BreakingProxy, rows_file: Path
) -> None:
    proxy.cut_after.append(20)
    with pytest.raises(ConnectionFailedError) as raised:
        through_proxy.datasets.upload(rows_file)
    assert not raised.value.was_never_sent
    assert proxy.num_connections == 1


def test_the_async_client_sends_again_too(proxy: BreakingProxy) -> None:
    async def use() -> None:
        async with AsyncClient(proxy.url, ADMIN_KEY) as trd:
            assert [model.id for model in await trd.models.list()] == ["small", "small-teacher"]

    proxy.cut_after.extend([20, 20])
    asyncio.run(use())
    assert proxy.num_connections == 3


def test_repeated_failures_are_reported(proxy: BreakingProxy) -> None:
    proxy.cut_after.extend([20] * 10)
    with Client(settings=ClientSettings(url=proxy.url, max_retries=1)) as trd, pytest.raises(ConnectionFailedError):
        trd.health()
    assert proxy.num_connections == 2


def test_silence_is_a_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = ClientSettings(url=f"http://127.0.0.1:{silent.getsockname()[1]}", read_seconds=0.2, max_retries=0)
        with Client(settings=settings) as trd, pytest.raises(TimedOutError, match="in time"):
            trd.models.list()


def test_a_rate_limit_is_waited_for(tmp_path: Path) -> None:
    limit = {"TRD_MAX_REQUESTS_PER_MINUTE": "60"}
    with (
        live_server(tmp_path / "data", TRD_API_KEY=ADMIN_KEY, **limit) as server,
        Client(server.url, ADMIN_KEY) as trd,
    ):
        for _ in range(62):
            assert list(trd.jobs.list()) == []


@pytest.mark.parametrize(
    ("refusal", "is_repeatable", "expected"),
    [
        (Refusal(503, "down"), True, True),
        (Refusal(503, "down"), False, False),
        (Refusal(500, "a defect"), True, False),
        (Refusal(409, "no"), True, False),
        (Refusal(429, "too often"), False, True),
        (Refusal(429, "quota", should_retry=False), True, False),
        (Refusal(503, "down", should_retry=False), True, False),
        (Refusal(422, "wrong"), True, False),
        (Refusal(409, "in flight", should_retry=True), True, True),
        (Refusal(409, "in flight", should_retry=True), False, False),
    ],
)
def test_what_may_be_sent_again(refusal: Refusal, is_repeatable: bool, expected: bool) -> None:
    assert is_worth_repeating(api_error(refusal), is_repeatable=is_repeatable) is expected


def test_pauses_grow_to_a_bound_unless_the_service_says_how_long() -> None:
    longest = [max(pause_seconds(n) for _ in range(50)) for n in (1, 3, 100)]
    assert 0.15 <= longest[0] <= 0.3 < longest[1] <= 1.2 < longest[2] <= 20
    assert pause_seconds(1, api_error(Refusal(429, "", retry_after_seconds=7))) == 7
    assert pause_seconds(1, api_error(Refusal(429, "", retry_after_seconds=900))) == 60
