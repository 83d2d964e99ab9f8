"""``/datasets``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from contract.tables import Dataset
from contract.views.datasets import DatasetPreview, DatasetView, DeletedDataset
from contract.views.page import Page
from service.auth import Reader, Submitter
from service.client_tries import ClientRetryCount, ClientTry, client_try
from service.context import Context, ServiceContext
from service.datasets import repository
from service.datasets.multipart import Form, receive_form
from service.datasets.preview import preview_rows
from service.datasets.recording import num_bytes_stored, store
from service.datasets.schemas import PreviewQuery
from service.datasets.service import Upload, delete, get_dataset
from service.errors import ApiError, MediaTypeError
from service.pages import Limit, cut

DEFAULT_FILENAME = "rows.jsonl"

router = APIRouter(prefix="/datasets", tags=["datasets"])

RAW_TYPES = frozenset(
    {
        "application/jsonl",
        "application/jsonlines",
        "application/vnd.apache.parquet",
        "application/x-jsonlines",
        "application/x-ndjson",
    }
)

_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _FILE}}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in sorted(RAW_TYPES)},
        },
    }
}


@router.post("", status_code=201, openapi_extra=_UPLOAD, summary="Upload problems, as JSON Lines or Parquet")
async def upload_dataset(
    context: Context,
    caller: Submitter,
    request: Request,
    filename: Annotated[str, Query(max_length=1000, description="Name of a raw body.")] = DEFAULT_FILENAME,
    retry_count: ClientRetryCount = None,
) -> DatasetView:
    """Each row: ``problem``, ``answer``, and optionally ``solution`` and ``id``, under these or the usual other
    names; or a chat, a choice, or a programming problem with its tests. Up to 100 errors name row, field and
    what is wrong."""
    row = await receive_dataset(context, caller.owner, request, filename, tried=client_try(request, retry_count))
    return DatasetView.of(row)


async def receive_dataset(
    context: ServiceContext,
    owner: str,
    request: Request,
    filename: str = DEFAULT_FILENAME,
    *,
    check_form: Callable[[Form], None] | None = None,
    tried: ClientTry | None = None,
) -> Dataset:
    """The stored and recorded dataset in the request's body, a form's file or the body itself.

    With `check_form`, which refuses what must not stand beside the file, the body must be a form. Where the
    client says that it repeats a request, what the other one stored is the answer to both.
    """
    body = request.stream()
    try:
        # What a client repeats may be stored already, and is found again also where it has filled the quota.
        is_repeated = tried is not None and tried.is_repeated
        num_stored = 0 if is_repeated else await run_in_threadpool(num_bytes_stored, context, owner)
        with context.storage.staged() as staged:
            upload = Upload(staged, context.settings.upload)
            with context.arriving.counted(owner, num_stored) as count:
                form = await _read_body(request, body, upload, count, needs_form=check_form is not None)
                if check_form is not None:
                    check_form(form)
                row = await upload.finish(owner, form.filename or filename)
            return await run_in_threadpool(store, context, staged, row, tried)
    except (ApiError, OSError, SQLAlchemyError):
        await _drain(body)
        raise


async def _read_body(
    request: Request, body: AsyncIterator[bytes], upload: Upload, count: Callable[[int], None], *, needs_form: bool
) -> Form:
    """Feed the upload, whose bytes are counted; a raw body is a form without a name and without fields."""

    async def take(content: bytes) -> None:
        count(len(content))
        await upload.write(content)

    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("content-encoding: send the rows as they are, not compressed")
    if media_type == "multipart/form-data":
        return await receive_form(content_type, body, take)
    if needs_form or media_type not in RAW_TYPES:
        raw = "" if needs_form else ", or the rows as application/jsonl or application/vnd.apache.parquet"
        raise MediaTypeError(f"content-type = {media_type or 'none'}: send a multipart/form-data file{raw}")
    async for content in body:
        await take(content)
    return Form()


async def _drain(body: AsyncIterator[bytes]) -> None:
    """Read what still comes: a client that is cut off while it sends never sees the answer."""
    with suppress(ApiError):  # the limit on the body holds here too
        async for _ in body:
            pass


@router.get("", summary="List datasets, newest first")
def list_datasets(
    context: Context,
    caller: Reader,
    after: Annotated[str | None, Query(max_length=40, description="Id of the last dataset seen.")] = None,
    limit: Limit = 20,
) -> Page[DatasetView]:
    """The caller's own."""
    with context.database.read() as session:
        rows, has_more = cut(repository.page(session, caller.owner, after, limit), limit)
    return Page(data=[DatasetView.of(row) for row in rows], has_more=has_more)


@router.get("/{dataset_id}", summary="One dataset")
def show_dataset(context: Context, caller: Reader, dataset_id: str) -> DatasetView:
    """What it holds, and its digest."""
    with context.database.read() as session:
        return DatasetView.of(get_dataset(session, caller.owner, dataset_id))


@router.get("/{dataset_id}/preview", summary="The prompts that a job would make of a dataset's first rows")
def preview_dataset(
    context: Context, caller: Reader, dataset_id: str, query: Annotated[PreviewQuery, Query()]
) -> DatasetPreview:
    """Token for token as the student (solve) and the teacher (the others) would read them, with what would be cut.
    A rollout is not there yet: its place is empty, and the room for it is told."""
    with context.database.read() as session:
        row = get_dataset(session, caller.owner, dataset_id)
    return DatasetPreview(dataset_id=dataset_id, data=preview_rows(context.storage, context.models, row, query))


@router.delete("/{dataset_id}", summary="Delete a dataset that no job needs")
def delete_dataset(context: Context, caller: Submitter, background: BackgroundTasks, dataset_id: str) -> DeletedDataset:
    """Jobs that are over keep their results."""
    with context.database.write() as session:
        key = delete(session, caller.owner, dataset_id)
    background.add_task(context.storage.give_up, key)
    return DeletedDataset(id=dataset_id)
