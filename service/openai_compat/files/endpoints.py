"""``/v1/files``."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from starlette.responses import RedirectResponse, StreamingResponse

from contract.storage import StoredFileMissingError
from contract.views import Page
from contract.views.audit import AuditAction
from service.auth import Reader, Submitter
from service.context import Context
from service.datasets.multipart import Form, UploadBody
from service.errors import ERROR_RESPONSES, ConflictError, InvalidRequestError, NotFoundError, QuotaError, raises
from service.openai_compat.files.schemas import PURPOSE, FileDeleted, FileObject, file_object
from service.openai_compat.routes import OpenAIRoute
from service.query import DECIMAL
from service.retries import MaybeClientTry

router = APIRouter(prefix="/v1/files", tags=["openai"], route_class=OpenAIRoute, responses=ERROR_RESPONSES)

MAX_FILES = 10_000
"""Most files in one page, and the default: as the `openai` client's users get them from OpenAI."""

_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": [PURPOSE]}},
}
_UPLOAD: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}},
}
_MEDIA_TYPES = {"jsonl": "application/jsonl", "parquet": "application/vnd.apache.parquet"}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {name: {"schema": {"type": "string", "format": "binary"}} for name in _MEDIA_TYPES.values()}},
    307: {"description": "With TRD_PRESIGNED_DOWNLOADS: the file's address in the store, for 15 minutes."},
}


@router.post("", openapi_extra=_UPLOAD, summary="Upload a file of problems")
@raises(QuotaError)
async def create_file(
    context: Context, caller: Submitter, request: Request, client_try: MaybeClientTry = None
) -> FileObject:
    """The only purpose is ``fine-tune``; the rows are those of ``POST /datasets``, and so are the errors, which name
    row and field."""
    body = UploadBody(request, check_form=_check_form)
    return file_object(await context.datasets.receive(caller.owner, body, "rows.jsonl", client_try))


def _check_form(form: Form) -> None:
    purpose = form.fields.pop("purpose", None)
    if purpose is None:
        raise InvalidRequestError(f"purpose: this field is required; send {PURPOSE}", param="purpose")
    if purpose != PURPOSE:
        raise InvalidRequestError(
            f"purpose = {purpose[:80]}: files here are trained or evaluated on; send {PURPOSE}", param="purpose"
        )
    for name in form.fields:
        param = name.partition("[")[0][:80]
        remedy = "files here stay until they are deleted" if param == "expires_after" else "send file and purpose"
        raise InvalidRequestError(f"{param}: unknown field; {remedy}", param=param)


@router.get("", summary="List files")
def list_files(
    context: Context,
    caller: Reader,
    *,
    after: Annotated[str | None, Query(max_length=40, description="Id of the last file seen.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_FILES, description="Most files in the page."), DECIMAL] = MAX_FILES,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of upload.")] = "desc",
    purpose: Annotated[str | None, Query(max_length=80)] = None,
) -> Page[FileObject]:
    """The list has the caller's own files."""
    if purpose not in (None, PURPOSE):
        return Page(data=[], has_more=False)
    rows, has_more = context.datasets.page(caller.owner, after, limit, oldest_first=order == "asc")
    return Page(data=[file_object(row) for row in rows], has_more=has_more)


@router.get("/{dataset_id}", summary="One file")
@raises(NotFoundError)
def show_file(context: Context, caller: Reader, dataset_id: str) -> FileObject:
    """The answer has the file's name, size and state."""
    return file_object(context.datasets.show(caller.owner, dataset_id))


@router.delete("/{dataset_id}", summary="Delete a file that no job needs")
@raises(NotFoundError, ConflictError)
def delete_file(context: Context, caller: Submitter, background: BackgroundTasks, dataset_id: str) -> FileDeleted:
    """Jobs that are over keep their results."""
    background.add_task(context.storage.give_up, context.datasets.delete(caller.owner, dataset_id))
    return FileDeleted(id=dataset_id)


@router.get("/{dataset_id}/content", response_class=Response, responses=_CONTENT, summary="Download a file")
@raises(NotFoundError)
def show_file_content(context: Context, caller: Reader, dataset_id: str) -> Response:
    """The file is as it was uploaded; the answer redirects to the store if the operator set TRD_PRESIGNED_DOWNLOADS."""
    row = context.datasets.show(caller.owner, dataset_id)
    headers = {
        "content-length": str(row.num_bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(row.filename)}",
        "x-checksum-sha256": row.sha256,
    }
    try:
        context.storage.size(row.storage_key)  # once the answer has begun, it can only be cut off
    except StoredFileMissingError as error:
        raise NotFoundError(f"{row.id} is no longer in the storage", code="file_not_found") from error
    context.audit.record(AuditAction.DATASET_DOWNLOAD, dataset_id)
    if (url := context.presigned_url(row.storage_key)) is not None:
        del headers["content-length"]
        return RedirectResponse(url, headers={**headers, "cache-control": "no-store"})
    content = context.storage.read_range(row.storage_key, 0, row.num_bytes)
    return StreamingResponse(content, headers=headers, media_type=_MEDIA_TYPES[row.format])
