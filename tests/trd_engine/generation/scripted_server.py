"""A real HTTP server on a free port that answers as a script says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server says to one request."""

    status: int = 200
    document: Any = None
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    wait_for: threading.Event | None = None
    """Said only when this is set."""
    is_dropped: bool = False
    """The connection is closed instead."""


@dataclass
class Received:
    path: str
    authorization: str | None
    body: dict[str, Any]
    method: str = "POST"
    content: bytes = b""
    """Content of an upload, which has no JSON body."""


class ScriptedServer(ThreadingHTTPServer):
    """`script` makes the reply to each request of what it asks and how many came before it."""

    daemon_threads = True

    def __init__(self, script: Callable[[Received, int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.received: list[Received] = []
        self.num_open = 0
        self.max_num_open = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(content) if self.command == "POST" else {}
        received = Received(self.path, self.headers.get("Authorization"), body, self.command, content)
        with self.server.lock:
            number = len(self.server.received)
            self.server.received.append(received)
            self.server.num_open += 1
            self.server.max_num_open = max(self.server.max_num_open, self.server.num_open)
        try:
            reply = self.server.script(received, number)
            if reply.wait_for is not None:
                reply.wait_for.wait(timeout=30)
        finally:
            with self.server.lock:  # before the answer: a client that has it may ask again before this thread runs on
                self.server.num_open -= 1
        with suppress(BrokenPipeError, ConnectionResetError):  # some tests are about a client that stops listening
            self._say(reply)

    do_PUT = do_GET = do_POST

    def _say(self, reply: Reply) -> None:
        if reply.is_dropped:
            self.close_connection = True
            return
        content = reply.raw if reply.raw is not None else json.dumps(reply.document).encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(script: Callable[[Received, int], Reply]) -> Iterator[ScriptedServer]:
    server = ScriptedServer(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chat_answer(text: str | None, finish_reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text}
    return Reply(document={"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})
