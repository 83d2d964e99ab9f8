"""Answers that get lost on the way: the client asks again, without a key, and nothing is made twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import APIConnectionError, BadRequestError

from tests.client.breaking_proxy import BreakingProxy, breaking_proxy
from tests.service.openai_compat.conftest import Service
from tests.service.openai_compat.sdk_calls import create_job, upload_file
from tests.service.records import ROWS


@pytest.fixture
def proxy(either_service: Service) -> Iterator[BreakingProxy]:
    port = urlsplit(either_service.url).port
    assert port is not None
    with breaking_proxy(port) as running:
        yield running


def losing(proxy: BreakingProxy, num_answers: int) -> dict[str, Any]:
    """Return the options of a client that never receives the server's first answers."""
    proxy.cut_after.extend([0] * num_answers)
    return {"base_url": f"{proxy.url}/v1", "max_retries": 2}


def test_a_lost_answer_makes_one_job(either_service: Service, proxy: BreakingProxy) -> None:
    openai = either_service.openai()
    file_id = upload_file(openai)
    job = create_job(either_service.openai(**losing(proxy, 2)), training_file=file_id)
    assert (proxy.num_connections, list(proxy.cut_after)) == (3, [])
    assert [found.id for found in openai.fine_tuning.jobs.list()] == [job.id]
    meant = create_job(openai, training_file=file_id)
    assert meant.id != job.id, "the same request again, not as a retry, is another job"


def test_a_lost_answer_stores_one_file(either_service: Service, proxy: BreakingProxy, tmp_path: Path) -> None:
    openai = either_service.openai()
    file_id = upload_file(either_service.openai(**losing(proxy, 1)))
    assert proxy.num_connections == 2
    assert [file.id for file in openai.files.list()] == [file_id]
    stored = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    assert [path.read_text() for path in stored] == [ROWS]
    assert upload_file(openai) != file_id
    renamed = upload_file(either_service.openai(**losing(proxy, 1)), filename="other.jsonl")
    assert openai.files.list().data[0].id == renamed
    assert len(openai.files.list().data) == 3


def test_a_lost_answer_to_an_action_changes_nothing(either_service: Service, proxy: BreakingProxy) -> None:
    job = create_job(either_service.openai())
    for action, status in (("pause", "queued"), ("resume", "queued"), ("cancel", "cancelled")):
        jobs = either_service.openai(**losing(proxy, 1)).fine_tuning.jobs
        assert getattr(jobs, action)(job.id).status == status
    assert proxy.num_connections == 6


def test_without_retries_a_lost_answer_is_the_users_to_see(either_service: Service, proxy: BreakingProxy) -> None:
    openai = either_service.openai()
    file_id = upload_file(openai)
    with pytest.raises(APIConnectionError):
        create_job(either_service.openai(**{**losing(proxy, 1), "max_retries": 0}), training_file=file_id)
    assert len(openai.fine_tuning.jobs.list().data) == 1


def test_the_asynchronous_client_makes_one_job_too(either_service: Service, proxy: BreakingProxy) -> None:
    async def use() -> None:
        async with either_service.async_openai(**losing(proxy, 1)) as openai:
            stored = await openai.files.create(file=("a.jsonl", ROWS.encode()), purpose="fine-tune")
        async with either_service.async_openai(**losing(proxy, 1)) as openai:
            method: Any = {"type": "trd", "trd": {"teacher": "small-teacher"}}
            job = await openai.fine_tuning.jobs.create(model="small", training_file=stored.id, method=method)
            assert [found.id async for found in openai.fine_tuning.jobs.list(limit=1)] == [job.id]
            assert [found.id async for found in openai.files.list(limit=1)] == [stored.id]
        assert proxy.num_connections == 4

    asyncio.run(use())


def test_an_idempotency_key_is_honoured(either_service: Service) -> None:
    openai = either_service.openai()
    file_id = upload_file(openai)
    key = {"Idempotency-Key": "k"}
    first = create_job(openai, training_file=file_id, extra_headers=key)
    again = create_job(openai, training_file=file_id, extra_headers=key)
    assert again == first
    openai.fine_tuning.jobs.cancel(first.id)
    raw = openai.fine_tuning.jobs.with_raw_response
    method: Any = {"type": "trd", "trd": {"teacher": "small-teacher"}}
    replayed = raw.create(model="small", training_file=file_id, method=method, extra_headers=key)
    assert replayed.headers["idempotent-replayed"] == "true"
    assert (replayed.parse().id, replayed.parse().status) == (first.id, "cancelled")
    with pytest.raises(BadRequestError) as refused:
        create_job(openai, training_file=file_id, seed=1, extra_headers=key)
    assert (refused.value.code, refused.value.param) == ("idempotency_key_reused", "Idempotency-Key")
