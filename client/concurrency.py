"""What the generator cannot translate: every name exists for the async client (``async_``, ``Async``) and without.

Everything else of `client._sync` is generated from `client._async`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import aclosing
from typing import TypeVar, TypeVarTuple

import httpx
from httpx_sse import EventSource, ServerSentEvent

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

sleep = time.sleep
async_sleep = asyncio.sleep


def run_blocking(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call `function`, which may block."""
    return function(*arguments)


async def async_run_blocking(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call `function`, which may block, on another thread."""
    return await asyncio.to_thread(function, *arguments)


def sse_frames(response: httpx.Response) -> Generator[ServerSentEvent, None, None]:
    """Yield the frames of an event stream."""
    yield from EventSource(response).iter_sse()


async def async_sse_frames(response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]:
    """Yield the frames of an event stream."""
    async with aclosing(EventSource(response).aiter_sse()) as frames:
        async for frame in frames:
            yield frame


class Group:
    """Works on several items at once, on threads. Threads cannot be cancelled: work must check `is_stopped`."""

    def __init__(self, num_parallel: int) -> None:
        self._num_parallel = num_parallel
        self._stop = threading.Event()

    def is_stopped(self) -> bool:
        """Return whether work should end, because another item has failed."""
        return self._stop.is_set()

    def sleep(self, seconds: float) -> None:
        """Wait, but not after `is_stopped`."""
        self._stop.wait(seconds)

    def run(self, work: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Call `work` for every item; raises the first error."""
        with ThreadPoolExecutor(self._num_parallel) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
        for future in futures:
            future.result()


class AsyncGroup:
    """Works on several items at once, as tasks. If one fails, the others are cancelled."""

    def __init__(self, num_parallel: int) -> None:
        self._num_parallel = num_parallel

    def is_stopped(self) -> bool:
        """Return False: other work is cancelled."""
        return False

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def run(self, work: Callable[[Item], Awaitable[None]], items: Sequence[Item]) -> None:
        """Await `work` for every item; raises the first error."""
        semaphore = asyncio.Semaphore(self._num_parallel)

        async def limited(item: Item) -> None:
            async with semaphore:
                await work(item)

        try:
            async with asyncio.TaskGroup() as tasks:
                for item in items:
                    tasks.create_task(limited(item))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
