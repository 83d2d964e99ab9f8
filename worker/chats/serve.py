"""Generates the answers of chats while no job waits.

The models of one chat stay loaded while its questions come. A job that arrives gets the worker after the answer that is
being generated.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from contract.job_spec import JobSpec
from contract.settings import make_private_folder
from contract.storage import ContentChangedError
from contract.tracing import continued, tracer
from contract.views.chats import ChatModel
from worker.attempt import Slot
from worker.chats import repository
from worker.chats.model_process import ModelEndedError, ModelProcess
from worker.chats.repository import Claimed
from worker.engine_spec import engine_source
from worker.failures import JobFailedError, public_text
from worker.lease import has_waiting
from worker.machine_check import offer_of

logger = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
"""An answer whose worker has not reported for this long is lost."""
FLUSH_SECONDS = 0.3
"""Interval at which new text is written to the database."""
LOOK_SECONDS = 0.5
"""Interval at which a worker that loads a model renews its lease, and learns whether it is still wanted for this."""
LOAD_SECONDS = 1800.0
"""Time limit for fetching and loading a model."""
OLD_SECONDS = 86_400.0
"""Folders of killed workers are removed after this."""


def serve_chats(slot: Slot) -> bool:
    """Answer until no question has come for `chat_idle_seconds`, or a job waits; return False if no question waits."""
    answer = _claim(slot)
    if answer is None:
        return False
    with _Models(slot) as models:
        idle_since = time.monotonic()
        while not slot.stopping.is_set():
            if answer is not None:
                with (
                    continued(answer.origin, job_id=answer.job_id, answer=answer.id),
                    tracer.start_as_current_span("answer chat", attributes={"trd.job_id": answer.job_id}),
                ):
                    models.answer(answer)
                idle_since = time.monotonic()
            with slot.database.read() as session:
                is_wanted = has_waiting(session, offer_of(slot))
            if is_wanted or time.monotonic() - idle_since > slot.settings.chat_idle_seconds:
                break
            answer = _claim(slot)
            if answer is None:
                slot.stopping.wait(FLUSH_SECONDS)
    return True


def _claim(slot: Slot) -> Claimed | None:
    queues = slot.settings.queues
    with slot.database.read() as session:
        if not repository.is_waiting(session, queues):
            return None
    with slot.database.write() as session:
        return repository.claim(session, queues=queues, worker=slot.name, lease_seconds=LEASE_SECONDS)


class _GoneError(Exception):
    """Nobody reads the answer any more."""


class _RefusedError(Exception):
    """The model cannot answer; the message is for the user."""


class _Models:
    """The loaded models of one checkpoint's chat."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._loaded: dict[str, ModelProcess] = {}
        self._chat: tuple[str, int] | None = None
        root = slot.settings.scratch_dir / "chats"
        make_private_folder(root)
        for folder in root.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > OLD_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        self._folder = Path(tempfile.mkdtemp(dir=root))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._unload()
        shutil.rmtree(self._folder, ignore_errors=True)

    def answer(self, answer: Claimed) -> None:
        """Generate one answer. Whatever fails ends the answer with a reason, and the worker continues."""
        text = ""
        try:
            model = self._load(answer)
            model.ask(answer.question)
            deadline = time.monotonic() + self._slot.settings.chat_seconds
            end: dict[str, Any] | None = None
            recorded_at = time.monotonic()
            while end is None:
                for part in model.next_parts(FLUSH_SECONDS):
                    text += part.get("piece", "").replace("\x00", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL takes none
                    end = part if "piece" not in part else None
                if end is None and (self._slot.stopping.is_set() or time.monotonic() > deadline):
                    reason = "The worker stops" if self._slot.stopping.is_set() else "It reached the time limit"
                    self._drop(answer.model)
                    end = {"is_truncated": True, "error": f"{reason}: the answer is cut off."}
                self._record(answer, text=text, end=end)
                time.sleep(max(0.0, FLUSH_SECONDS - (time.monotonic() - recorded_at)) if end is None else 0.0)
                recorded_at = time.monotonic()
        except _GoneError:
            self._drop(answer.model)
        except (_RefusedError, ModelEndedError) as error:
            self._drop(answer.model)
            self._fail(answer, text, str(error))
        except Exception as error:
            logger.exception("an answer of %s failed", answer.job_id)
            self._drop(answer.model)
            self._fail(answer, text, f"The worker failed: {type(error).__name__}: {public_text(error)}")

    def _load(self, answer: Claimed) -> ModelProcess:
        """Return the child of the answer's model, ready for a question."""
        if self._chat != (answer.job_id, answer.step):
            self._unload()
            self._chat = (answer.job_id, answer.step)
        if answer.model not in self._loaded:
            source = self._source(answer)
            self._loaded[answer.model] = ModelProcess(source, self._folder / f"{answer.model}.log")
            deadline = time.monotonic() + LOAD_SECONDS
            while not (parts := self._loaded[answer.model].next_parts(LOOK_SECONDS)):
                self._keep_waiting(answer)
                if time.monotonic() > deadline or self._slot.stopping.is_set():
                    raise _RefusedError("The model was not loaded in time.")
            if "error" in parts[0]:
                raise _RefusedError(f"The model cannot be loaded: {parts[0]['error']}")
        self._record(answer, is_loaded=True)
        return self._loaded[answer.model]

    def _source(self, answer: Claimed) -> str:
        """Return what the child loads; of a checkpoint its files are fetched first."""
        with self._slot.database.read() as session:
            document = repository.spec_of(session, answer.job_id)
            files = repository.checkpoint_files(session, answer.job_id, answer.step)
        try:
            spec = JobSpec.model_validate(document)
            if answer.model != ChatModel.CHECKPOINT:
                name = spec.student if answer.model == ChatModel.BASE else spec.teacher
                source = engine_source(name, self._slot.catalog(), self._slot.settings.teacher_endpoints)
                return source if isinstance(source, str) else json.dumps(source)
        except ValidationError as error:
            raise _RefusedError("This worker's version does not know the job's spec.") from error
        except JobFailedError as error:
            raise _RefusedError(error.failure.message) from error
        has_model = any(file.name.startswith("model/") for file in files)
        wanted = [file for file in files if file.name.startswith("model/" if has_model else "adapter/")]
        if not wanted:
            raise _RefusedError(f"The checkpoint of step {answer.step} was deleted.")
        folder = self._folder / f"step-{answer.step}"
        shutil.rmtree(folder, ignore_errors=True)

        def fetch() -> None:
            for file in wanted:
                self._slot.storage.fetch(file.storage_key, folder / file.name.partition("/")[2], sha256=file.sha256)

        try:
            with ThreadPoolExecutor(max_workers=1) as thread:
                fetching = thread.submit(fetch)
                while not wait([fetching], LOOK_SECONDS).done:
                    self._keep_waiting(answer)
                fetching.result()
        except (OSError, ContentChangedError) as error:
            raise _RefusedError(f"The checkpoint's files could not be fetched: {public_text(error)}") from error
        return str(folder)

    def _keep_waiting(self, answer: Claimed) -> None:
        """Renew the lease while the model is loaded, which may take minutes; a job need not wait for it."""
        self._record(answer)
        with self._slot.database.read() as session:
            if has_waiting(session, offer_of(self._slot)):
                raise _RefusedError("A job took the worker before the model was loaded. Ask again.")

    def _record(self, answer: Claimed, **columns: Any) -> None:
        with self._slot.database.write() as session:
            if not repository.record(session, answer, LEASE_SECONDS, **columns):
                raise _GoneError

    def _fail(self, answer: Claimed, text: str, message: str) -> None:
        with suppress(_GoneError):
            self._record(answer, text=text, end={"error": message})

    def _drop(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.pop(name).close()

    def _unload(self) -> None:
        for name in list(self._loaded):
            self._drop(name)
