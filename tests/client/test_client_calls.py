"""Every call against a real server, by both clients."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from client import ApiError, AsyncClient, Client
from client.errors import (
    ConflictError,
    InvalidRequestError,
    InvalidValueError,
    JobFailedError,
    JobPausedError,
    NotFoundError,
    TimedOutError,
    TrdError,
)
from client.jobs import JobFilter
from contract.job_spec import JobSpec
from contract.job_state import JobStatus
from tests.client.conftest import RunningService, spec_of
from tests.service.conftest import ADMIN_KEY
from tests.service.records import add_evaluation, add_metrics, add_trajectory, finish_job, set_job
from trd_data.plain_json import MAX_INTEGER_DIGITS

ROOMS = (
    "jobs",
    "events",
    "metrics",
    "trajectories",
    "evaluations",
    "diagnoses",
    "probe_samples",
    "checkpoints",
    "datasets",
    "models",
    "keys",
)


def test_a_job_is_led_through_its_life(trd: Client, rows_file: Path) -> None:
    dataset = trd.datasets.upload(rows_file)
    assert (dataset.num_rows, dataset.filename, dataset.format) == (40, "rows.jsonl", "jsonl")
    job = trd.jobs.create({**spec_of(dataset.id), "name": "first", "tags": ["life"]})
    assert (job.status, job.step, job.spec["optim"]["batch_size"]) == (JobStatus.QUEUED, 0, 128)
    found = trd.jobs.get(job.id)
    assert found.expected_note is not None, "nothing runs here"
    assert found == job.model_copy(update={"expected_note": found.expected_note})
    assert trd.jobs.pause(job.id).status is JobStatus.PAUSED
    assert trd.jobs.resume(job.id).status is JobStatus.QUEUED
    clone = trd.jobs.clone(job.id, {"optim": {"learning_rate": 0.5}, "name": "second"})
    assert (clone.cloned_from, clone.spec["optim"]["learning_rate"]) == (job.id, 0.5)
    assert trd.jobs.cancel(job.id).status is JobStatus.CANCELLED
    assert trd.jobs.cancel(clone.id).is_over
    assert [found.id for found in trd.jobs.list(JobFilter(tag="life"))] == [clone.id, job.id]
    assert [found.id for found in trd.jobs.list(JobFilter(status=["queued"], tag="life"))] == []
    assert trd.jobs.delete(job.id).deleted
    with pytest.raises(NotFoundError) as raised:
        trd.jobs.get(job.id)
    assert (raised.value.code, raised.value.param) == ("job_not_found", "job_id")
    trd.jobs.delete(clone.id)
    assert trd.datasets.delete(dataset.id).id == dataset.id


def test_a_dry_run_makes_nothing(trd: Client, rows_file: Path) -> None:
    spec = JobSpec.model_validate({**spec_of(trd.datasets.upload(rows_file).id), "tags": ["dry"]})
    forecast = trd.jobs.dry_run(spec)
    assert forecast.spec["queue"] == "trd-default"
    assert forecast.estimate is not None
    assert forecast.estimate.num_problems == 40
    assert list(trd.jobs.list(JobFilter(tag="dry"))) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ({3}, "{3}"),
        (b"x", "b'x'"),
        (Path("/models/x"), "PosixPath('/models/x')"),
        (torch.ones(1), "tensor([1.])"),
        (datetime(2026, 1, 1, tzinfo=UTC), "datetime.date"),
        ("\ud800", r"'\ud800'"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
    ],
)
def test_a_value_that_json_lacks_is_named_and_not_sent(trd: Client, value: Any, shown: str) -> None:
    spec = {**spec_of("ds_0"), "optim": {"betas": [0.9, value]}}
    sends: dict[str, Callable[[], object]] = {
        "optim.betas.1": lambda: trd.jobs.create(spec),
        "optim.betas.1 ": lambda: trd.jobs.dry_run(spec),
        "student": lambda: trd.jobs.clone("job_0", {"student": value}),
        "messages.0.content": lambda: next(trd.checkpoints.chat("job_0", 1, [{"content": value}])),
        "grace_seconds": lambda: trd.keys.rotate("key_0", grace_seconds=value),
        "name": lambda: trd.keys.create(value),
        "event_types.0": lambda: trd.webhooks.create("https://x", event_types=[value]),
        "is_enabled": lambda: trd.webhooks.change("wh_0", is_enabled=value),
        "token": lambda: trd.view("job_0", token=value),
        "problem": lambda: trd.datasets.upload(Path(__file__), columns={"problem": value}),
    }
    for field, send in sends.items():
        with pytest.raises(InvalidValueError) as raised:
            send()
        assert raised.value.message.startswith(f"{field.strip()} = {shown}")
        assert raised.value.hint is not None


def test_a_value_that_contains_itself_and_a_key_that_no_header_holds_are_refused(trd: Client) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidValueError, match=r"tags\.0\.0\.0"):
        trd.jobs.create({"tags": endless})
    with pytest.raises(InvalidValueError, match="seed = an integer of thousands of digits"):
        trd.jobs.create({"seed": 10 ** (MAX_INTEGER_DIGITS + 1)})  # an earlier test may have raised Python's limit
    for key in ("schl\u00fcssel", "a\nb"):
        with pytest.raises(InvalidValueError, match="idempotency_key = "):
            trd.jobs.create({}, idempotency_key=key)


def test_the_same_key_makes_one_job(trd: Client, rows_file: Path) -> None:
    spec = spec_of(trd.datasets.upload(rows_file).id)
    first, again = (trd.jobs.create(spec, idempotency_key="once") for _ in range(2))
    assert first.id == again.id
    with pytest.raises(InvalidRequestError) as raised:
        trd.jobs.create({**spec, "seed": 7}, idempotency_key="once")
    assert (raised.value.status, raised.value.code) == (422, "idempotency_key_reused")
    assert trd.jobs.create(spec).id != first.id


def test_all_faults_of_a_request_are_forecast(trd: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        trd.jobs.create({"mode": "trd", "student": "small", "dataset": "ds_1", "optim": {"epochs": 0}, "unknown": 1})
    assert {error["param"] for error in raised.value.errors} >= {"optim.epochs", "unknown"}
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"problem": "1", "answer": "1"}\n{"problem": "2"}\n')
    with pytest.raises(InvalidRequestError) as refused:
        trd.datasets.upload(broken)
    assert refused.value.code == "dataset_invalid"
    assert [(error["row"], error["field"]) for error in refused.value.errors] == [(2, "answer")]
    with pytest.raises(TrdError, match="cannot be read"):
        trd.datasets.upload(tmp_path / "absent.jsonl")


def test_an_impossible_action_is_a_conflict_and_is_not_repeated(trd: Client, job_id: str) -> None:
    trd.jobs.cancel(job_id)
    with pytest.raises(ConflictError, match="resume, delete") as raised:
        trd.jobs.pause(job_id)
    assert raised.value.code == "illegal_transition"


def test_lists_go_on_over_their_pages(trd: Client, rows_file: Path, service: RunningService) -> None:
    dataset = trd.datasets.upload(rows_file).id
    made = [trd.jobs.create({**spec_of(dataset), "tags": ["many"]}).id for _ in range(105)]
    wanted = JobFilter(tag="many")
    assert [job.id for job in trd.jobs.list(wanted)] == made[::-1]
    assert [job.id for job in trd.jobs.list(wanted, num_wanted=103)] == made[:1:-1]
    assert [job.id for job in trd.jobs.list(wanted, num_wanted=0)] == []
    page = trd.jobs.page(wanted, limit=2, after=made[50])
    assert ([job.id for job in page.data], page.has_more) == ([made[49], made[48]], True)
    assert len(list(trd.datasets.list(num_wanted=1))) == 1
    for position in range(101):
        add_trajectory(service.database, made[0], position)
    assert [row.position for row in trd.trajectories.list(made[0])] == list(range(101))


def test_what_a_run_wrote_down_is_read(trd: Client, job_id: str, service: RunningService) -> None:
    add_metrics(service.database, job_id, "loss", {1: 2.0, 2: None, 3: 1.0})
    add_metrics(service.database, job_id, "learning_rate", {1: 0.1})
    add_evaluation(service.database, job_id, 0, 0.25)
    add_trajectory(service.database, job_id, 0)
    add_trajectory(service.database, job_id, 1, verdicts=(True, True))
    assert {series.name for series in trd.metrics.list(job_id)} == {"loss", "learning_rate"}
    (loss,) = trd.metrics.list(job_id, ["loss"], from_step=2)
    assert (loss.steps, loss.values) == ([2, 3], [None, 1.0])
    (evaluation,) = trd.evaluations.list(job_id)
    assert (evaluation.step, evaluation.avg_at_k) == (0, 0.25)
    (corrected,) = trd.trajectories.list(job_id, ["fail_to_pass"])
    assert (corrected.id, corrected.parts_at) == ("0:0", 9)
    assert trd.trajectories.get(job_id, "0:1").outcome == "both_right"
    assert {count.outcome: count.num_trajectories for count in trd.trajectories.outcomes(job_id)} == {
        "fail_to_pass": 1,
        "both_right": 1,
    }
    assert next(trd.events.list(job_id)).type == "status"
    assert trd.checkpoints.list(job_id) == []


def test_waiting_ends_with_the_job(trd: Client, job_id: str, service: RunningService) -> None:
    with pytest.raises(TimedOutError, match="still queued"):
        trd.jobs.wait(job_id, max_seconds=0)
    set_job(service.database, job_id, error_code="disk_full", error_message="full", error_hint="free some")
    finish_job(service.database, job_id, JobStatus.FAILED)
    with pytest.raises(JobFailedError, match="disk_full: full") as raised:
        trd.jobs.wait(job_id)
    assert (raised.value.code, raised.value.hint) == ("disk_full", "free some")
    finish_job(service.database, job_id, JobStatus.SUCCEEDED)
    assert trd.jobs.wait(job_id).status is JobStatus.SUCCEEDED


def test_a_paused_job_is_not_waited_for(trd: Client, job_id: str, service: RunningService) -> None:
    async def wait() -> None:
        async with AsyncClient(service.url, ADMIN_KEY) as asynchronous:
            await asynchronous.jobs.wait(job_id, max_seconds=30)

    trd.jobs.pause(job_id)
    with pytest.raises(JobPausedError, match=f"{job_id} is paused") as raised:
        trd.jobs.wait(job_id, max_seconds=30)
    assert raised.value.hint == "resume it, then wait again"
    with pytest.raises(JobPausedError):
        asyncio.run(wait())


def test_keys_and_models(trd: Client, service: RunningService) -> None:
    key = trd.keys.create("reader", owner="someone", scopes=["read"])
    with Client(service.url, key.key) as reader:
        assert list(reader.jobs.list()) == []
        with pytest.raises(ApiError) as raised:
            reader.jobs.create({})
        assert (raised.value.status, raised.value.code) == (403, "insufficient_scope")
    assert key.id in {row.id for row in trd.keys.list()}
    assert trd.keys.revoke(key.id).revoked_at is not None
    assert {model.id for model in trd.models.list()} == {"small", "small-teacher"}
    assert trd.models.get("small").context_tokens == 40_960
    with pytest.raises(NotFoundError):
        trd.models.get("owner/absent")


def test_an_id_is_never_more_than_a_part_of_a_path(trd: Client) -> None:
    with pytest.raises(NotFoundError):
        trd.jobs.get("../keys")
    with pytest.raises(NotFoundError):
        trd.datasets.get("?limit=1")


def test_the_async_client_does_the_same(service: RunningService, rows_file: Path) -> None:
    async def use() -> None:
        async with AsyncClient(service.url, ADMIN_KEY) as trd:
            assert (await trd.health()).status == "ok"
            dataset = await trd.datasets.upload(rows_file)
            job = await trd.jobs.create({**spec_of(dataset.id), "tags": ["async"]})
            clone = await trd.jobs.clone(job.id)
            assert [row.id async for row in trd.jobs.list(JobFilter(tag="async"))] == [clone.id, job.id]
            assert (await trd.jobs.cancel(job.id)).status is JobStatus.CANCELLED
            with pytest.raises(JobFailedError):
                await trd.jobs.wait(job.id)
            assert [event.sequence async for event in trd.events.list(job.id)] == [1, 2]
            assert await trd.metrics.list(job.id) == []
            assert await trd.evaluations.list(job.id) == []
            assert [row async for row in trd.diagnoses.list(job.id)] == []
            assert [row async for row in trd.probe_samples.list(job.id)] == []
            assert await trd.trajectories.outcomes(job.id) == []
            assert [row async for row in trd.trajectories.list(job.id)] == []
            assert {model.id for model in await trd.models.list()} >= {"small"}
            key = await trd.keys.create("k")
            assert (await trd.keys.revoke(key.id)).revoked_at is not None
            with pytest.raises(NotFoundError):
                await trd.checkpoints.manifest(job.id)

    asyncio.run(use())


@pytest.mark.parametrize("room", ROOMS)
def test_both_clients_have_the_same_calls(room: str) -> None:
    with Client("http://127.0.0.1:1", "key") as sync_client:
        one, other = _calls(getattr(sync_client, room)), _calls(getattr(AsyncClient("http://127.0.0.1:1"), room))
    assert one == other


def _calls(room: Any) -> dict[str, list[str]]:
    found = inspect.getmembers(room, inspect.ismethod)
    return {name: [str(p) for p in inspect.signature(m).parameters.values()] for name, m in found if name[0] != "_"}
