"""Clients that need little CPU time compared with the server: HTTP/1.1, persistent connections, one event loop.

They implement only the part of the protocol that uvicorn's answers need.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 60
EVENT_LINE_BYTES = 2**20


@dataclass(frozen=True)
class Target:
    """A server, and the headers of every request to it."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()

    def render(self, method: str, path: str, document: object = None, **headers: str) -> bytes:
        """Return an encoded request; header names are written with underscores."""
        body = b"" if document is None else json.dumps(document).encode()
        lines = [f"{method} {path} HTTP/1.1", f"host: {urlsplit(self.url).netloc}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if document is not None:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def connect(self) -> Connection:
        """Open a persistent connection."""
        address = urlsplit(self.url)
        return Connection(*await asyncio.open_connection(address.hostname, address.port, limit=EVENT_LINE_BYTES))


@dataclass(frozen=True)
class Connection:
    """A persistent connection; one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body of an answer with a Content-Length."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            status, num_bytes = await self.begin(request)
            return status, await self.reader.readexactly(num_bytes)

    async def begin(self, request: bytes) -> tuple[int, int]:
        """Return the status and the length of the unread body; -1 if it is chunked."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        lines = head.split("\r\n")
        lengths = [int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")]
        return int(lines[0].split()[1]), lengths[0] if lengths else -1

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()


async def all_of(target: Target, requests: Sequence[bytes], num_connections: int, status: int) -> float:
    """Return the seconds until all requests are answered; each answer must have the status."""
    connections = [await target.connect() for _ in range(num_connections)]
    waiting = iter(requests)

    async def work(connection: Connection) -> None:
        for request in waiting:  # shared: each takes the next one
            got, body = await connection.ask(request)
            if got != status:
                raise RuntimeError(f"{request[:200]!r} was answered with {got}: {body[:500]!r}")

    began = time.perf_counter()
    await asyncio.gather(*map(work, connections))
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return seconds


async def latency(connection: Connection, request: bytes, status: int = 200) -> float:
    """Return the seconds of one request, whose answer must have the status."""
    began = time.perf_counter()
    got, body = await connection.ask(request)
    seconds = time.perf_counter() - began
    if got != status:
        raise RuntimeError(f"{request[:200]!r} was answered with {got}: {body[:500]!r}")
    return seconds


@dataclass
class Listener:
    """A client of a job's event stream, which may lose its connection once and reconnect."""

    target: Target
    job_id: str
    cut_after: int | None = None
    """Number of events after which the connection breaks once."""
    sequences: list[int] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    """Seconds between each event's time and its arrival."""
    is_over: bool = False
    first_event: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self, seconds_of: Callable[[str], float]) -> None:
        """Read until the stream's end event; `seconds_of` reads an event's time from its data."""
        while not self.is_over:
            last = str(self.sequences[-1]) if self.sequences else "0"
            request = self.target.render(
                "GET", f"/jobs/{self.job_id}/events", accept="text/event-stream", last_event_id=last
            )
            connection = await self.target.connect()
            try:
                status, _ = await connection.begin(request)
                if status != 200:
                    raise RuntimeError(f"the stream of {self.job_id} was answered with {status}")
                await self._read(connection.reader, seconds_of)
            finally:
                connection.close()

    async def _read(self, reader: asyncio.StreamReader, seconds_of: Callable[[str], float]) -> None:
        number: int | None = None
        while line := (await reader.readline()).decode().rstrip("\r\n") or not reader.at_eof():
            if line is True:
                continue
            if line.startswith("id:"):
                number = int(line[3:])
            elif line.startswith("event: end"):
                self.is_over = True
                return
            elif line.startswith("data:") and number is not None:
                delay = time.time() - seconds_of(line[5:])
                self.sequences.append(number)
                self.delays.append(delay)
                self.first_event.set()
                number = None
                if self.cut_after is not None and len(self.sequences) >= self.cut_after:
                    self.cut_after = None
                    return


async def download(target: Target, path: str) -> tuple[int, float, str]:
    """Return bytes, seconds and sha256 of an answer without keeping it."""
    connection = await target.connect()
    digest = hashlib.sha256()
    began = time.perf_counter()
    status, num_bytes = await connection.begin(target.render("GET", path))
    if status != 200:
        raise RuntimeError(f"{path} was answered with {status}")
    left = num_bytes
    while left > 0:
        piece = await connection.reader.read(min(left, 2**20))
        if not piece:
            raise RuntimeError(f"{path} broke off {left} bytes before its end")
        digest.update(piece)
        left -= len(piece)
    seconds = time.perf_counter() - began
    connection.close()
    return num_bytes, seconds, digest.hexdigest()


async def settled(awaitables: Iterable[Awaitable[None]], seconds: float) -> None:
    """Await all of them, with a timeout in seconds."""
    async with asyncio.timeout(seconds):
        await asyncio.gather(*awaitables)
