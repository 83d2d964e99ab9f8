"""Receiving a dataset, piece by piece, and giving it up again."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from contract.ids import DATASET_PREFIX, new_id
from contract.storage_keys import dataset_key
from contract.tables import Dataset
from service.datasets import repository
from service.datasets.rows import MAX_ERRORS, RowChecker
from service.errors import ConflictError, InvalidRequestError, NotFoundError
from service.jobs.repository import uses_dataset
from service.settings import UploadLimits
from service.storage import CHUNK_BYTES, StagedFile, Storage

MAX_FILENAME = 255

_UNLIMITED = UploadLimits(max_bytes=2**62, max_line_bytes=2**62, max_rows=2**62, max_json_depth=500)
"""For rows that were accepted, under whatever limits held then."""


class Upload:
    """One file on its way in: every piece is checked, hashed and staged, and forgotten."""

    def __init__(self, staged: StagedFile, limits: UploadLimits) -> None:
        self._staged = staged
        self._checker = RowChecker(limits)
        self._sha256 = hashlib.sha256()
        self._buffer = bytearray()

    async def write(self, content: bytes) -> None:
        """The next piece. Pieces are gathered, so that a thread is not called for every packet."""
        self._buffer += content
        if len(self._buffer) >= CHUNK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        content = bytes(self._buffer)
        self._buffer.clear()
        await run_in_threadpool(self._process, content)

    def _process(self, content: bytes) -> None:
        self._checker.feed(content)
        if self._checker.num_problems == 0:
            self._staged.write(content)
            self._sha256.update(content)

    async def finish(self, owner: str, filename: str) -> Dataset:
        """The row of the stored file; raises `InvalidRequestError` that names each bad row."""
        await self._flush()
        self._checker.finish()
        _refuse_bad_rows(self._checker)
        now = datetime.now(UTC)
        dataset_id = new_id(DATASET_PREFIX, now_seconds=now.timestamp())
        key = dataset_key(dataset_id)
        await run_in_threadpool(self._staged.keep, key)
        return Dataset(
            id=dataset_id,
            owner=owner,
            filename=_plain_filename(filename),
            format="jsonl",
            num_rows=self._checker.num_rows,
            num_bytes=self._checker.num_bytes,
            sha256=self._sha256.hexdigest(),
            has_solutions=self._checker.first_without_solution is None,
            storage_key=key,
            created_at=now,
        )


def _refuse_bad_rows(checker: RowChecker) -> None:
    if checker.num_rows == 0:
        raise InvalidRequestError("the file has no rows; write one JSON object a line", code="dataset_invalid")
    if not checker.problems:
        return
    first = checker.problems[0]
    more = f" ({checker.num_problems} problems in all"
    more += f", the first {MAX_ERRORS} are listed)" if checker.num_problems > MAX_ERRORS else ")"
    raise InvalidRequestError(
        f"row {first.row}: {first.message}" + (more if checker.num_problems > 1 else ""),
        code="dataset_invalid",
        param=first.field,
        errors=[problem.as_dict() for problem in checker.problems],
    )


def _plain_filename(filename: str) -> str:
    """The last part, without what a terminal or a header would act on."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in name if character.isprintable())[:MAX_FILENAME] or "rows.jsonl"


def first_row_without_solution(storage: Storage, key: str) -> int:
    """The line, from 1, of the first row of a stored dataset that has no solution.

    For a message only: upload noted that there is one, not where.
    """
    checker = RowChecker(_UNLIMITED)
    with storage.open(key) as stream:
        while checker.first_without_solution is None and (content := stream.read(CHUNK_BYTES)):
            checker.feed(content)
    checker.finish()
    assert checker.first_without_solution is not None, "a dataset is said to lack a solution and has them all"
    return checker.first_without_solution


def get_dataset(session: Session, owner: str, dataset_id: str, *, for_update: bool = False) -> Dataset:
    """The owner's dataset; raises `NotFoundError`, for another owner's too."""
    row = repository.find(session, owner, dataset_id, for_update=for_update)
    if row is None:
        raise NotFoundError(f"there is no dataset {dataset_id}", code="dataset_not_found", param="dataset_id")
    return row


def delete(session: Session, owner: str, dataset_id: str) -> str:
    """Forget a dataset that no job needs, and return the storage key to remove after the commit."""
    row = get_dataset(session, owner, dataset_id, for_update=True)
    job_id = uses_dataset(session, owner, dataset_id)
    if job_id is not None:
        raise ConflictError(
            f"{dataset_id} is what {job_id} trains or is evaluated on; wait for it to end, or cancel it",
            code="dataset_in_use",
        )
    row.deleted_at = datetime.now(UTC)
    return row.storage_key
