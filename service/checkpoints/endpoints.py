"""``/jobs/{id}/checkpoints``."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from email.utils import format_datetime
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Path, Query, Request, Response
from starlette.responses import RedirectResponse, StreamingResponse

from contract.storage import StoredFileMissingError
from contract.tables import CheckpointFile
from contract.views import Page
from contract.views.audit import AuditAction
from contract.views.checkpoints import CheckpointView, DeletedCheckpoint, ManifestView
from service.auth import Reader, Submitter
from service.checkpoints.archive import Archive
from service.checkpoints.ranges import requested_range
from service.checkpoints.service import manifest_view
from service.context import Context, ServiceContext
from service.errors import ERROR_RESPONSES, ConflictError, NotFoundError, RangeError, raises

router = APIRouter(prefix="/jobs/{job_id}/checkpoints", tags=["checkpoints"], responses=ERROR_RESPONSES)

Step = Annotated[str, Path(description="A step, or 'latest'.")]

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_BINARY: dict[str, Any] = {"content": {"application/octet-stream": _BYTES}}
_DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: _BINARY,
    206: {"description": "The requested range.", **_BINARY},
    304: {"description": "The client has this file: If-None-Match."},
    307: {"description": "With TRD_PRESIGNED_DOWNLOADS: the file's address in the store, for 15 minutes."},
}
_TAR: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-tar": _BYTES}}}


@router.get("", summary="A job's checkpoints by step")
@raises(NotFoundError)
def list_checkpoints(context: Context, caller: Reader, job_id: str) -> Page[CheckpointView]:
    """Only complete checkpoints are listed: each was verified against its manifest. The one of step 0, which a job may
    keep to resume from, is no result and is not listed."""
    rows = context.checkpoints.all_of(caller.owner, job_id)
    return Page(data=[CheckpointView.of(row) for row in rows], has_more=False)


@router.get("/{step}", summary="A checkpoint's manifest")
@raises(NotFoundError)
def show_checkpoint(context: Context, caller: Reader, job_id: str, step: Step) -> ManifestView:
    """The manifest lists the files with their sizes and digests."""
    return manifest_view(*context.checkpoints.with_files(caller.owner, job_id, step))


@router.delete("/{step}", summary="Delete a checkpoint")
@raises(NotFoundError, ConflictError)
def delete_checkpoint(
    context: Context, caller: Submitter, background: BackgroundTasks, job_id: str, step: Step
) -> DeletedCheckpoint:
    """The one that the job would continue from cannot be deleted."""
    row = context.checkpoints.delete(caller.owner, job_id, step)
    background.add_task(context.storage.give_up, row.storage_prefix)
    return DeletedCheckpoint(id=row.id)


@router.head("/{step}/files/{name:path}", include_in_schema=False)
@router.get("/{step}/files/{name:path}", response_class=Response, responses=_DOWNLOAD, summary="Download a file")
@raises(NotFoundError, RangeError)
def download_file(context: Context, caller: Reader, request: Request, job_id: str, step: Step, name: str) -> Response:
    """The answer is the file or one ``Range`` of it, with its sha256 as entity tag and in a header: a download resumes
    where it stopped, and is checked at its end.

    If the operator has set TRD_PRESIGNED_DOWNLOADS, the answer is a redirect to the store: send ``Range`` there, and
    neither the key nor ``If-Range``, which is checked here.
    """
    checkpoint, file = context.checkpoints.with_file(caller.owner, job_id, step, name)
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    headers = {
        "etag": f'"{file.sha256}"',
        "last-modified": format_datetime(checkpoint.created_at, usegmt=True),
        "accept-ranges": "bytes",
        "x-checksum-sha256": file.sha256,
        "repr-digest": f"sha-256=:{digest}:",  # RFC 9530: of the whole file, whatever the range
        "content-disposition": f'attachment; filename="{file.name.rpartition("/")[2]}"',
        "cache-control": "private, no-cache",
    }
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    part = requested_range(request.headers, file.num_bytes, headers["etag"])
    _require_stored(context, file)
    if request.method == "GET" and (part is None or part.start == 0):  # a download that is resumed was recorded
        context.audit.record(AuditAction.CHECKPOINT_DOWNLOAD, f"{job_id}/{checkpoint.step}/{name}")
    if request.method == "GET" and request.headers.get("if-range", headers["etag"]) == headers["etag"]:
        url = context.presigned_url(file.storage_key)
        if url is not None:
            return RedirectResponse(url, headers={**headers, "cache-control": "no-store"})
    wanted = part or range(file.num_bytes)
    headers["content-length"] = str(len(wanted))
    if part is not None:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{file.num_bytes}"
    status = 200 if part is None else 206
    media_type = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    content = context.storage.read_range(file.storage_key, wanted.start, wanted.stop)
    return StreamingResponse(content, status_code=status, headers=headers, media_type=media_type)


@router.get("/{step}/archive", response_class=Response, responses=_TAR, summary="Download a checkpoint as a tar")
@raises(NotFoundError)
def download_archive(
    context: Context,
    caller: Reader,
    job_id: str,
    step: Step,
    folder: Annotated[str | None, Query(max_length=255, description="Only this folder: model, adapter, state.")] = None,
) -> Response:
    """The tar has all files, or one folder's, and SHA256SUMS for ``sha256sum -c``. It is made while it is sent."""
    checkpoint, files = context.checkpoints.with_files(caller.owner, job_id, step)
    if folder is not None:
        files = [file for file in files if file.name.startswith(f"{folder}/")]
    if not files:
        raise NotFoundError(f"checkpoint {checkpoint.step} has no folder {folder}", code="file_not_found")
    for file in files:
        _require_stored(context, file)
    context.audit.record(AuditAction.CHECKPOINT_DOWNLOAD, f"{job_id}/{checkpoint.step}", folder=folder)
    name = f"{job_id}-step-{checkpoint.step}"
    archive = Archive(name, files, int(checkpoint.created_at.timestamp()))
    headers = {
        "content-length": str(archive.num_bytes),
        "content-disposition": f'attachment; filename="{name}.tar"',
    }
    content: Iterator[bytes] = archive.stream(context.storage)
    return StreamingResponse(content, headers=headers, media_type="application/x-tar")


def _require_stored(context: ServiceContext, file: CheckpointFile) -> None:
    """Raise an error before the answer begins: after that, it can only be cut off."""
    try:
        context.storage.size(file.storage_key)
    except StoredFileMissingError as error:
        raise NotFoundError(
            f"{file.name} is listed but no longer in the storage; a newer checkpoint may have replaced it",
            code="file_not_found",
        ) from error
