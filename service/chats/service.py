"""Asks the models of a job, and streams their answers.

An answer is a row that lives as long as its stream: the stream renews it, a free worker claims it and appends text, and
the row's end or disappearance ends the generation. So it works with any number of service processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

from anyio import CancelScope
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from contract.database import Database, lock_identical_requests
from contract.ids import ANSWER_PREFIX, new_id
from contract.tables import ChatAnswer
from contract.tracing import origin
from contract.views.chats import AnswerEnd, AnswerPiece, AnswerWaits, ChatModel
from service.chats import repository
from service.chats.schemas import Question
from service.checkpoints.service import CheckpointService
from service.errors import InvalidRequestError, QuotaError
from service.events.feed import KEEP_ALIVE, passing_frame
from service.jobs.repository import live_workers
from service.jobs.service import get_job

POLL_SECONDS = 0.25
"""Interval at which a stream looks for more text."""
READ_FOR = timedelta(seconds=20)
"""How long an answer lives after its stream was last seen."""
MAX_OPEN = 6
"""Answers that one owner may have open at a time."""


class ChatService:
    """The use cases of chats."""

    def __init__(self, database: Database, checkpoints: CheckpointService) -> None:
        self._database = database
        self._checkpoints = checkpoints

    def ask(self, owner: str, job_id: str, step: str, wanted: Question) -> str:
        """Queue an answer and return its id; raise `NotFoundError`, `InvalidRequestError` and `QuotaError`."""
        checkpoint, _ = self._checkpoints.with_files(owner, job_id, step)
        now = datetime.now(UTC)
        with self._database.write() as session:
            job = get_job(session, owner, job_id)
            if wanted.model is ChatModel.TEACHER and job.spec.get("teacher") is None:
                reason = "this job's teacher is its own student, shown the reference solution; ask base"
                raise InvalidRequestError(f"model = teacher: {reason}", param="model")
            lock_identical_requests(session, f"chats {owner}")
            repository.forget_unread(session, now)
            if repository.num_open(session, owner) >= MAX_OPEN:
                raise QuotaError(f"you have {MAX_OPEN} answers open, the most that are allowed; wait for one to end")
            row = ChatAnswer(
                id=new_id(ANSWER_PREFIX),
                owner=owner,
                job_id=job_id,
                step=checkpoint.step,
                model=wanted.model,
                queue=job.queue,
                question=wanted.model_dump(mode="json", exclude={"model"}),
                origin=origin(),
                wanted_until=now + READ_FOR,
            )
            session.add(row)
        return row.id

    async def stream(self, answer_id: str, is_closing: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Yield the answer's parts as server-sent events until its end; forget it when the reader goes away."""
        last_wait: AnswerWaits | None = None
        num_sent = 0
        renew_at = datetime.now(UTC)
        try:
            while not is_closing():
                now = datetime.now(UTC)
                is_due = now >= renew_at
                renew_at = now + READ_FOR / 4 if is_due else renew_at
                row, waits = await run_in_threadpool(self._look, answer_id, now, is_due)
                if row is None:
                    yield passing_frame("end", AnswerEnd(error="The answer was dropped: its job was deleted."))
                    return
                if len(row.text) > num_sent:
                    yield passing_frame("piece", AnswerPiece(text=row.text[num_sent:]))
                    num_sent = len(row.text)
                if row.end is not None:
                    yield passing_frame("end", AnswerEnd(**row.end))
                    return
                if waits is not None and waits != last_wait:
                    yield passing_frame("waiting", waits)
                elif is_due:
                    yield KEEP_ALIVE
                last_wait = waits
                await asyncio.sleep(POLL_SECONDS)
        finally:
            with CancelScope(shield=True):  # a reader that went away has cancelled this task
                await run_in_threadpool(self._forget, answer_id)

    def _look(self, answer_id: str, now: datetime, is_due: bool) -> tuple[ChatAnswer | None, AnswerWaits | None]:
        """Return the answer, and why it has no text; a worker that was lost ends it."""
        with self._database.write() if is_due else self._database.read() as session:
            if is_due:
                repository.renew(session, answer_id, now + READ_FOR)
            row = repository.find(session, answer_id)
            waits = _why_waiting(session, row, now) if row is not None else None
            if row is not None:
                session.expunge(row)
        if row is not None and row.end is None and row.leased_until is not None and row.leased_until < now:
            row.end = {"error": "The worker that answered was lost. Ask again."}
        return row, waits

    def _forget(self, answer_id: str) -> None:
        with self._database.write() as session:
            repository.forget(session, answer_id)


def _why_waiting(session: Session, row: ChatAnswer, now: datetime) -> AnswerWaits | None:
    if row.worker is not None:
        return None if row.is_loaded else AnswerWaits(position=0, message="A worker loads the model.")
    position = repository.position(session, row, now)
    names = {worker.name for worker in live_workers(session) if row.queue in worker.queues}
    if not names:
        message = f"No worker runs for the queue {row.queue}: start one, and it will answer."
    elif names <= repository.busy_workers(session):
        message = f"No worker is free: all {len(names)} of the queue {row.queue} are busy with jobs."
    elif position > 1:
        message = f"{position - 1} answers come before this one."
    else:
        message = "A free worker takes it within seconds."
    return AnswerWaits(position=position, message=message)
