"""Runs `trd_data.child` for requests: from a bounded pool, one child an owner at a time, killed when the client leaves.

Whoever waits, waits on the event loop and holds no thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.errors import RateLimitError
from service.settings import Settings
from trd_data.child import MAX_REPLY_BYTES, ChildLimits, command, environment, parse_reply
from trd_data.notices import Notice

logger = logging.getLogger(__name__)

REFERENCES_PROGRAM = "trd_engine.tasks.references"
_JUDGING_SECONDS = 30
REFERENCES_SECONDS = 60.0
"""The program that judges references stops by itself after `_JUDGING_SECONDS`, at the end of a comparison."""
_PASSED_ON = ("TRD_ALLOW_UNCONFINED_VERIFIERS",)
"""The operator's permission to judge references without confinement."""
_NOT_JUDGED = Notice(
    "references_not_judged",
    "The reference answers were not compared with themselves: the program that does it did not run here",
    "install the service with its extra, so that math-verify is there; the job itself is not affected",
    tasks=("math",),
)
Answer = TypeVar("Answer")


class ChildPool:
    """The children of one API process; used on its event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._wait_seconds = settings.check_wait_seconds
        self._most_present = settings.max_uploads_per_owner
        self._judges_references = settings.judge_references
        self._slots = asyncio.Semaphore(settings.max_checks)
        self._turns: dict[str, asyncio.Lock] = {}
        self._num_present: Counter[str] = Counter()

    @asynccontextmanager
    async def present(self, owner: str) -> AsyncIterator[None]:
        """Count an upload or preview of the owner from its beginning to its end; raise `RateLimitError` if too many
        are in progress."""
        if self._num_present[owner] >= self._most_present:
            raise RateLimitError(
                f"{self._most_present} of your uploads and previews are in progress; wait for one to end",
                code="too_many_uploads",
                headers={"retry-after": "5"},
            )
        self._num_present[owner] += 1
        try:
            yield
        finally:
            self._num_present[owner] -= 1
            if self._num_present[owner] == 0:
                del self._num_present[owner]
                self._turns.pop(owner, None)

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[None]:
        """Wait for the owner's turn and then for a free slot; raise `RateLimitError` after `TRD_CHECK_WAIT_SECONDS`.

        To be called within `present`.
        """
        turn, waiting = self._turns.setdefault(owner, asyncio.Lock()), asyncio.timeout(self._wait_seconds)
        try:
            async with waiting, turn, self._slots:
                waiting.reschedule(None)
                yield
        except TimeoutError:
            if not waiting.expired():  # of the work in the slot
                raise
            raise RateLimitError(
                "other files are being checked, one of an owner at a time; send the request again",
                code="too_many_uploads",
                headers={"retry-after": str(math.ceil(self._wait_seconds))},
            ) from None

    async def ask(self, stream: IO[bytes], request: dict[str, Any], limits: ChildLimits) -> Any:
        """Return what a child finds in a local file; raises the errors of `trd_data.child.parse_reply`.

        To be called within `slot`.
        """
        stream.seek(0)
        content, status = await _run(command(request, limits), stream, limits.wall_seconds)
        return parse_reply(content, status, limits)

    async def judge_references(self, references: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return notices of references that no answer could match. To be called within `slot`."""
        if not self._judges_references or not any(_is_worth_judging(reference) for reference in references):
            return []
        with TemporaryFile() as lines:
            lines.writelines(json.dumps(reference).encode() + b"\n" for reference in references)
            lines.seek(0)
            arguments = [sys.executable, "-P", "-s", "-m", REFERENCES_PROGRAM, f"--seconds={_JUDGING_SECONDS}"]
            content, status = await _run(arguments, lines, REFERENCES_SECONDS)
        try:
            if status == 0:
                return [vars(Notice(**notice)) for notice in json.loads(content)["notices"]]
        except (ValueError, KeyError, TypeError):
            logger.exception("the references' notices cannot be read")
        return [vars(_NOT_JUDGED)]


def _is_worth_judging(reference: dict[str, Any]) -> bool:
    """Return False for what surely agrees with itself: an integer without a worked solution."""
    is_integer = reference["answer"].removeprefix("-").isdecimal()
    return not is_integer or "\\boxed" in (reference["solution"] or "")


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Return what `work` returns; if the client leaves before, cancel it and raise `ClientDisconnect`.

    To be called when the request's body was read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _run(arguments: list[str], stdin: IO[bytes], seconds: float) -> tuple[bytes, int]:
    """Run a program and return its output and exit status.

    It and its children are killed after `seconds`, if the output exceeds `MAX_REPLY_BYTES`, and on cancellation.
    """
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**environment(), **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}},
        start_new_session=True,
    )
    assert process.stdout is not None
    content = bytearray()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(content) <= MAX_REPLY_BYTES and (piece := await process.stdout.read(2**16)):
                    content += piece
                if len(content) <= MAX_REPLY_BYTES:
                    await process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(asyncio.ensure_future(_reap(process, process.stdout)))
    assert process.returncode is not None, "it has ended"
    return bytes(content), process.returncode


async def _reap(process: asyncio.subprocess.Process, output: asyncio.StreamReader) -> None:
    """Wait for the end of a killed program and of its pipe, so that neither a zombie nor a descriptor remains."""
    while await output.read(2**16):
        pass
    await process.wait()
