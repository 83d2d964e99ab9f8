"""Looking at jobs and leading them, with the unmodified client."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from openai import (
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
)

from contract.job_state import JobStatus
from service.openai_compat.fine_tuning.schemas import STATUSES
from tests.service.conftest import MakeClient
from tests.service.openai_compat.conftest import Service, serving
from tests.service.openai_compat.sdk_calls import create_job, native_of, upload_file
from tests.service.records import (
    ROWS,
    add_checkpoint,
    add_events,
    add_metrics,
    database_of,
    finish_job,
    set_job,
    submit,
)
from tests.service.test_access import new_key


def test_a_job_is_paused_resumed_and_cancelled(openai: OpenAI) -> None:
    jobs = openai.fine_tuning.jobs
    job = create_job(openai)
    paused = jobs.pause(job.id)
    assert (paused.status, native_of(paused)["status"]) == ("queued", "paused")
    assert native_of(jobs.pause(job.id))["status"] == "paused", "repeating is harmless"
    resumed = jobs.resume(job.id)
    assert (resumed.status, native_of(resumed)["queue_position"]) == ("queued", 1)
    cancelled = jobs.cancel(job.id)
    assert (cancelled.status, cancelled.trained_tokens) == ("cancelled", 0)
    assert cancelled.finished_at is not None
    assert jobs.retrieve(job.id) == cancelled


def test_what_the_status_does_not_allow_is_a_conflict_that_is_not_retried(service: Service) -> None:
    openai = service.openai(max_retries=5)
    job = create_job(openai)
    finish_job(database_of(service.native), job.id)
    began = time.monotonic()
    with pytest.raises(ConflictError, match="for this one, delete") as refused:
        openai.fine_tuning.jobs.cancel(job.id)
    assert (refused.value.code, refused.value.param) == ("illegal_transition", "status")
    assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("status", list(JobStatus))
def test_a_strict_client_reads_every_status(service: Service, status: JobStatus) -> None:
    openai = service.openai(_strict_response_validation=True)
    job = create_job(openai)
    set_job(service.native, job.id, status=status, eta_seconds=60.0)
    shown = openai.fine_tuning.jobs.retrieve(job.id)
    assert shown.status == STATUSES[status]
    assert native_of(shown)["status"] == status
    if shown.status == "running":
        assert shown.estimated_finish == pytest.approx(time.time() + 60, abs=20)
    else:
        assert shown.estimated_finish is None


def test_a_succeeded_job_names_its_model_and_counts_its_tokens(service: Service, openai: OpenAI) -> None:
    job = create_job(openai, suffix="My run!")
    add_metrics(service.native, job.id, "trained_tokens", {1: 1000.0, 2: 500.0})
    finish_job(database_of(service.native), job.id)
    done = openai.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.trained_tokens) == ("succeeded", 1500)
    assert done.native["status"] == "succeeded", "as the README reads it"  # type: ignore[attr-defined]
    assert done.fine_tuned_model == f"ft:small:admin:My-run-:{job.id}"


def test_a_failed_job_says_why(service: Service, openai: OpenAI) -> None:
    job = create_job(openai)
    set_job(service.native, job.id, status="failed", error_code="out_of_memory", error_message="6 GiB")
    error = openai.fine_tuning.jobs.retrieve(job.id).error
    assert error is not None
    assert (error.code, error.message, error.param) == ("out_of_memory", "6 GiB", None)
    set_job(service.native, job.id, error_message=None, error_hint="less")
    error = openai.fine_tuning.jobs.retrieve(job.id).error
    assert error is not None
    assert error.message == "less"


def test_jobs_are_iterated_page_by_page_newest_first(openai: OpenAI) -> None:
    file_id = upload_file(openai)
    ids = [create_job(openai, training_file=file_id).id for _ in range(3)]
    assert [job.id for job in openai.fine_tuning.jobs.list(limit=1)] == ids[::-1]
    page = openai.fine_tuning.jobs.list(limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    assert [job.id for job in openai.fine_tuning.jobs.list(after=ids[1])] == ids[:1]


def test_jobs_are_filtered_by_their_metadata(either_service: Service) -> None:
    openai = either_service.openai()
    file_id = upload_file(openai)
    metadata: list[dict[str, str]] = [{"team": "a", "no.": "1"}, {"team": "b"}, {"team": "a"}, {}]
    ids = [create_job(openai, training_file=file_id, metadata=pairs).id for pairs in metadata]
    jobs = openai.fine_tuning.jobs
    assert [job.id for job in jobs.list(metadata={"team": "a"}, limit=1)] == [ids[2], ids[0]]
    assert [job.id for job in jobs.list(metadata={"team": "a", "no.": "1"})] == [ids[0]]
    assert [job.id for job in jobs.list(metadata={"team": "c"})] == []
    assert [job.id for job in jobs.list(metadata={})] == ids[::-1]
    too_many = {f"metadata[{i}]": "1" for i in range(33)}
    for query in ({'metadata[a"b]': "1"}, {"metadata": "null"}, too_many):
        with pytest.raises(BadRequestError) as refused:
            jobs.list(extra_query=query)
        assert refused.value.param == "metadata"


def test_jobs_of_the_native_call_are_seen_too(service: Service) -> None:
    openai = service.openai(_strict_response_validation=True)
    generated = {"generator": "basic_arithmetic", "size": 10}
    job_id = submit(service.native, dataset=generated)
    (job,) = openai.fine_tuning.jobs.list()
    assert (job.id, job.training_file) == (job_id, '{"generator": "basic_arithmetic", "size": 10, "seed": 0}')


def test_events_come_newest_first_in_pages(service: Service, openai: OpenAI) -> None:
    job = create_job(openai)
    add_events(database_of(service.native), job.id, 5)
    page = openai.fine_tuning.jobs.list_events(job.id, limit=3)
    assert [event.message for event in page.data] == ["number 4", "number 3", "number 2"]
    everything = list(openai.fine_tuning.jobs.list_events(job.id, limit=3))
    assert everything[-1].message == "The job is queued."
    assert len({event.id for event in everything}) == len(everything)
    assert {event.type for event in everything} == {"message"}
    newest = everything[0]
    assert (newest.data, newest.level) == ({"number": 4}, "info")
    assert newest.created_at == pytest.approx(time.time(), abs=60)
    for wrong in ("7", "job_other:1", f"{job.id}:x"):
        with pytest.raises(BadRequestError) as refused:
            openai.fine_tuning.jobs.list_events(job.id, after=wrong)
        assert refused.value.param == "after"


def test_checkpoints_come_newest_first_with_their_losses(service: Service, openai: OpenAI, tmp_path: Path) -> None:
    job = create_job(openai)
    for step in (10, 20, 30):
        add_checkpoint(service.native, tmp_path / "storage", job.id, step, {"model/config.json": b"{}"})
        time.sleep(0.002)  # ids of two milliseconds differ in time
    add_metrics(service.native, job.id, "loss", {10: 0.5, 20: None, 30: 0.25})
    add_metrics(service.native, job.id, "heldout_forward_kl", {30: 0.75})
    checkpoints = list(openai.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [30, 20, 10]
    metrics = [(c.metrics.step, c.metrics.train_loss, c.metrics.valid_loss) for c in checkpoints]
    assert metrics == [(30, 0.25, 0.75), (20, None, None), (10, 0.5, None)]
    newest = checkpoints[0]
    assert newest.fine_tuned_model_checkpoint == f"ft:small:admin::{job.id}:ckpt-step-30"
    assert newest.fine_tuning_job_id == job.id
    assert native_of(newest) == service.native.get(f"/jobs/{job.id}/checkpoints").json()["data"][-1]


def test_the_asynchronous_client_does_the_same(service: Service, tmp_path: Path) -> None:
    async def use(strict: bool) -> None:
        async with service.async_openai(_strict_response_validation=strict) as openai:
            jobs = openai.fine_tuning.jobs
            file_id = (await openai.files.create(file=("a.jsonl", ROWS.encode()), purpose="fine-tune")).id
            created = [await jobs.create(**arguments(file_id)) for _ in range(2)]
            ids = [job.id for job in created]
            assert [job.id async for job in jobs.list(limit=1) if job.id in ids] == ids[::-1]
            assert native_of(await jobs.pause(ids[0]))["status"] == "paused"
            assert (await jobs.resume(ids[0])).status == "queued"
            assert (await jobs.cancel(ids[0])).status == "cancelled"
            assert (await jobs.retrieve(ids[0])).status == "cancelled"
            assert [event.message async for event in jobs.list_events(ids[0], limit=2)][-1] == "The job is queued."
            add_checkpoint(service.native, tmp_path / "storage", ids[1], 4, {"model/config.json": b"{}"})
            (checkpoint,) = [found async for found in jobs.checkpoints.list(ids[1])]
            name = checkpoint.fine_tuned_model_checkpoint
            assert (await openai.models.retrieve(name)).id == name
            assert "small" in [model.id async for model in openai.models.list()]
            with pytest.raises(NotFoundError):
                await jobs.retrieve("job_none")

    def arguments(file_id: str) -> dict[str, object]:
        method = {"type": "trd", "trd": {"teacher": "small-teacher"}}
        return {"model": "small", "training_file": file_id, "method": method}

    for strict in (False, True):
        asyncio.run(use(strict))


def test_another_owners_objects_are_not_there(service: Service, tmp_path: Path) -> None:
    mine = service.openai()
    file_id = upload_file(mine)
    job = create_job(mine, training_file=file_id)
    add_checkpoint(service.native, tmp_path / "storage", job.id, 4, {"model/config.json": b"{}"})
    finish_job(database_of(service.native), job.id)
    trained = mine.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert trained is not None
    assert mine.models.retrieve(trained).id == trained
    key = new_key(service.native, "stranger", "admin")["authorization"].removeprefix("Bearer ")
    stranger = service.openai(api_key=key)
    jobs = stranger.fine_tuning.jobs
    calls = [
        lambda: stranger.files.retrieve(file_id),
        lambda: stranger.files.content(file_id),
        lambda: stranger.files.delete(file_id),
        lambda: jobs.retrieve(job.id),
        lambda: jobs.cancel(job.id),
        lambda: jobs.pause(job.id),
        lambda: jobs.resume(job.id),
        lambda: jobs.list_events(job.id),
        lambda: jobs.checkpoints.list(job.id),
        lambda: stranger.models.retrieve(trained),
        lambda: stranger.models.retrieve(f"{trained}:ckpt-step-4"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
    assert stranger.files.list().data == []
    assert jobs.list().data == []
    with pytest.raises(BadRequestError, match="there is no such dataset"):
        create_job(stranger, training_file=file_id)


def test_a_reading_key_reads_and_no_more(service: Service) -> None:
    job = create_job(service.openai())
    key = new_key(service.native, "admin", "read")["authorization"].removeprefix("Bearer ")
    reader = service.openai(api_key=key)
    assert reader.fine_tuning.jobs.retrieve(job.id).id == job.id
    for call in (lambda: reader.fine_tuning.jobs.cancel(job.id), lambda: upload_file(reader)):
        with pytest.raises(PermissionDeniedError) as refused:
            call()
        assert refused.value.code == "insufficient_scope"


def test_a_key_that_is_not_known_is_an_authentication_error(service: Service) -> None:
    with pytest.raises(AuthenticationError) as refused:
        service.openai(api_key="trd_wrong").fine_tuning.jobs.list()
    assert refused.value.code == "invalid_api_key"


def test_a_rate_limited_key_gets_the_time_to_retry(make_client: MakeClient, sqlite_url: str) -> None:
    with serving(make_client(sqlite_url, max_requests_per_minute=2)) as service:
        openai = service.openai()
        openai.models.list()
        openai.models.list()
        with pytest.raises(RateLimitError) as refused:
            openai.models.list()
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["retry-after"]) >= 1


def test_the_clients_other_calls_are_not_found(service: Service) -> None:
    with pytest.raises(NotFoundError, match=re.escape("GET /openapi.json lists all paths")):
        service.openai().chat.completions.create(model="small", messages=[{"role": "user", "content": "hi"}])
