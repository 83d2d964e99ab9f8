"""``/datasets``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query, Request

from contract.views import Page
from contract.views.datasets import DatasetPreview, DatasetView, DeletedDataset
from service.auth import Reader, Submitter
from service.context import Context
from service.datasets.multipart import RAW_TYPES, UploadBody
from service.datasets.schemas import PreviewQuery, dataset_view
from service.errors import ERROR_RESPONSES, ConflictError, NotFoundError, QuotaError, raises
from service.query import Limit
from service.retries import MaybeClientTry

DEFAULT_FILENAME = "rows.jsonl"

router = APIRouter(prefix="/datasets", tags=["datasets"], responses=ERROR_RESPONSES)

_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _FILE, "columns": {"type": "string"}}}
_COLUMNS = """Which column of the file has which of our fields, if the names differ: a JSON object, such as
{"problem": "question"}. A form may have it as a field."""
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in sorted(RAW_TYPES)},
        },
    }
}


@router.post("", status_code=201, openapi_extra=_UPLOAD, summary="Upload problems, as JSON Lines, JSON, CSV or Parquet")
@raises(QuotaError)
async def upload_dataset(
    context: Context,
    caller: Submitter,
    request: Request,
    filename: Annotated[str, Query(max_length=1000, description="Name of a raw body.")] = DEFAULT_FILENAME,
    columns: Annotated[str | None, Query(max_length=10_000, description=_COLUMNS)] = None,
    client_try: MaybeClientTry = None,
) -> DatasetView:
    """Each row has ``problem``, ``answer``, and optionally ``solution`` and ``id``, under these or the usual other
    names; or it is a chat, a choice, or a programming problem with its tests. Up to 100 errors name row, field and
    what is wrong."""
    body = UploadBody(request)
    return dataset_view(await context.datasets.receive(caller.owner, body, filename, client_try, columns))


@router.get("", summary="List datasets, newest first")
def list_datasets(
    context: Context,
    caller: Reader,
    after: Annotated[str | None, Query(max_length=40, description="Id of the last dataset seen.")] = None,
    limit: Limit = 20,
) -> Page[DatasetView]:
    """The list has the caller's own datasets."""
    rows, has_more = context.datasets.page(caller.owner, after, limit)
    return Page(data=[dataset_view(row) for row in rows], has_more=has_more)


@router.get("/{dataset_id}", summary="One dataset")
@raises(NotFoundError)
def show_dataset(context: Context, caller: Reader, dataset_id: str) -> DatasetView:
    """The answer says what the dataset holds, and has its digest."""
    return dataset_view(context.datasets.show(caller.owner, dataset_id))


@router.get("/{dataset_id}/preview", summary="The prompts that a job would make of a dataset's first rows")
@raises(NotFoundError)
async def preview_dataset(
    context: Context, caller: Reader, request: Request, dataset_id: str, query: Annotated[PreviewQuery, Query()]
) -> DatasetPreview:
    """The prompts are shown token for token as the student (solve) and the teacher (the others) would read them, with
    what would be cut. There is no rollout yet: its place is empty, and the tokens that fit there are given."""
    rows = await context.datasets.preview(caller.owner, dataset_id, query, request.receive)
    return DatasetPreview(dataset_id=dataset_id, data=rows)


@router.delete("/{dataset_id}", summary="Delete a dataset that no job needs")
@raises(NotFoundError, ConflictError)
def delete_dataset(context: Context, caller: Submitter, background: BackgroundTasks, dataset_id: str) -> DeletedDataset:
    """Jobs that are over keep their results."""
    background.add_task(context.storage.give_up, context.datasets.delete(caller.owner, dataset_id))
    return DeletedDataset(id=dataset_id)
