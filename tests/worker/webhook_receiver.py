"""A real receiver of webhooks on this machine, good or hostile as the path of its URL says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENDLESS_SECONDS = 20.0
"""Time after which a hostile answer ends by itself."""


@dataclass(frozen=True)
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent. ``/down`` answers 500 until `is_up`; ``/hang`` and ``/endless`` do what they say."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[Got] = []
        self.is_up = False
        self.is_closing = threading.Event()

    def url(self, path: str) -> str:
        """Return the URL of a behaviour."""
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def at(self, path: str) -> list[Got]:
        """Return what came to a path."""
        return [one for one in self.got if one.path.partition("?")[0] == f"/{path}"]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(Got(self.path, dict(self.headers.items()), body))
        with suppress(BrokenPipeError, ConnectionResetError):
            self._answer(self.path.strip("/").partition("?")[0])

    def _answer(self, path: str) -> None:
        if path == "hang":
            self.server.is_closing.wait(ENDLESS_SECONDS)
            return
        status = {"redirect": 302, "down": 200 if self.server.is_up else 500}.get(path, 200)
        self.send_response(status)
        if path == "redirect":
            self.send_header("location", self.server.url("good"))
        if path == "endless":
            self.end_headers()
            while not self.server.is_closing.wait(0.001):
                self.wfile.write(b"x" * 65_536)
            return
        content = b"thanks" if status == 200 else b"out of order"
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a receiver."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.is_closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
