from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path

import httpx
import pyarrow
import pytest
from openai import APIStatusError, BadRequestError, ConflictError, NotFoundError, OpenAI, RateLimitError
from pyarrow import parquet

from tests.service.conftest import AUTHORIZED, MakeClient
from tests.service.openai_compat.conftest import Service, serving
from tests.service.openai_compat.sdk_calls import create_job, native_of, upload_file
from tests.service.records import ROWS


def test_a_file_goes_up_is_waited_for_and_comes_back(openai: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(ROWS)
    with path.open("rb") as stream:
        created = openai.files.create(file=stream, purpose="fine-tune")
    assert created.id.startswith("ds_")
    assert (created.bytes, created.filename, created.purpose) == (len(ROWS), "mine.jsonl", "fine-tune")
    assert native_of(created)["sha256"] == hashlib.sha256(ROWS.encode()).hexdigest()
    assert native_of(created)["num_rows"] == 40
    assert openai.files.wait_for_processing(created.id, poll_interval=0.1, max_wait_seconds=5).status == "processed"
    assert openai.files.retrieve(created.id) == created
    content = openai.files.content(created.id)
    assert content.text == ROWS
    assert content.response.headers["content-type"] == "application/jsonl"
    assert openai.files.delete(created.id).deleted
    with pytest.raises(NotFoundError) as refused:
        openai.files.retrieve(created.id)
    assert refused.value.code == "dataset_not_found"
    assert refused.value.request_id is not None


def test_the_asynchronous_client_does_the_same(service: Service) -> None:
    async def use(strict: bool) -> None:
        async with service.async_openai(_strict_response_validation=strict) as openai:
            created = await openai.files.create(file=("async.jsonl", ROWS.encode()), purpose="fine-tune")
            processed = await openai.files.wait_for_processing(created.id, poll_interval=0.1)
            assert processed == created
            assert [file.id async for file in openai.files.list(limit=1)] == [created.id]
            assert (await openai.files.content(created.id)).text == ROWS
            assert (await openai.files.delete(created.id)).deleted

    for strict in (False, True):
        asyncio.run(use(strict))


def test_parquet_is_a_file_too(service: Service) -> None:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"problem": ["1 + 1"], "answer": ["2"]}), buffer)
    openai = service.openai()
    created = openai.files.create(file=("rows.parquet", buffer.getvalue()), purpose="fine-tune")
    content = openai.files.content(created.id)
    assert content.read() == buffer.getvalue()
    assert content.response.headers["content-type"] == "application/vnd.apache.parquet"


def test_a_bad_row_is_named(openai: OpenAI) -> None:
    lines = ROWS.splitlines()
    lines[16] = '{"problem": "17 + 17", "answr": "34"}'
    with pytest.raises(BadRequestError, match="row 17: answer: this field is required") as refused:
        upload_file(openai, "\n".join(lines))
    assert (refused.value.code, refused.value.param) == ("dataset_invalid", "answer")
    assert refused.value.type == "invalid_request_error"
    assert isinstance(refused.value.body, dict)
    assert [(error["row"], error["field"]) for error in refused.value.body["errors"]] == [(17, "answer")]
    assert openai.files.list().data == []


def test_files_are_listed_in_pages_from_either_end(openai: OpenAI) -> None:
    ids = [upload_file(openai, filename=f"{number}.jsonl") for number in range(5)]
    assert [file.id for file in openai.files.list().data] == ids[::-1], "all in one page, as at OpenAI"
    assert [file.id for file in openai.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in openai.files.list(limit=2, order="asc")] == ids
    assert [file.id for file in openai.files.list(limit=2, purpose="fine-tune")] == ids[::-1]
    assert openai.files.list(purpose="batch").data == []
    page = openai.files.list(limit=2)
    assert page.has_next_page()
    assert [file.id for file in page.get_next_page().data] == ids[1:3][::-1]


def test_other_purposes_and_fields_are_refused(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="purpose = batch: files here are trained or evaluated on") as refused:
        openai.files.create(file=("a.jsonl", ROWS.encode()), purpose="batch")
    assert refused.value.param == "purpose"
    with pytest.raises(BadRequestError, match="expires_after: unknown field; files here stay") as refused:
        openai.files.create(
            file=("a.jsonl", ROWS.encode()),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
    assert refused.value.param == "expires_after"
    assert openai.files.list().data == []


def test_a_body_that_is_no_form_is_refused(service: Service) -> None:
    headers = {**AUTHORIZED, "content-type": "application/jsonl"}
    answer = httpx.post(f"{service.url}/v1/files", content=ROWS, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    no_purpose = httpx.post(f"{service.url}/v1/files", files={"file": ("r.jsonl", ROWS)}, headers=AUTHORIZED)
    assert (no_purpose.status_code, no_purpose.json()["error"]["param"]) == (400, "purpose")


def test_a_file_that_a_job_needs_stays(openai: OpenAI) -> None:
    trained, evaluated = upload_file(openai), upload_file(openai)
    job = create_job(openai, training_file=trained, validation_file=evaluated)
    for file_id in (trained, evaluated):
        with pytest.raises(ConflictError) as refused:
            openai.files.delete(file_id)
        assert refused.value.code == "dataset_in_use"
        assert refused.value.response.headers["x-should-retry"] == "false"
    openai.fine_tuning.jobs.cancel(job.id)
    assert openai.files.delete(trained).deleted


def test_limits_and_quotas_are_those_of_datasets(make_client: MakeClient, sqlite_url: str) -> None:
    limits = {"max_upload_bytes": len(ROWS), "max_rows": 40}
    client = make_client(sqlite_url, **limits, max_stored_bytes=len(ROWS), max_body_bytes=100)
    with serving(client) as service:
        openai = service.openai()
        with pytest.raises(APIStatusError) as too_large:
            upload_file(openai, ROWS * 2)
        assert (too_large.value.status_code, too_large.value.code) == (413, "dataset_too_large")
        upload_file(openai)
        with pytest.raises(RateLimitError) as over:
            upload_file(openai)
        assert (over.value.code, over.value.type) == ("quota_exceeded", "quota_error")


def test_a_file_is_a_dataset_and_a_dataset_a_file(service: Service) -> None:
    openai = service.openai()
    file_id = upload_file(openai)
    dataset = service.native.get(f"/datasets/{file_id}").json()
    assert dataset == native_of(openai.files.retrieve(file_id))


def test_a_file_whose_bytes_are_gone_is_not_found(service: Service, tmp_path: Path) -> None:
    openai = service.openai()
    file_id = upload_file(openai)
    for path in (tmp_path / "storage" / "datasets").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(NotFoundError) as refused:
        openai.files.content(file_id)
    assert refused.value.code == "file_not_found"
