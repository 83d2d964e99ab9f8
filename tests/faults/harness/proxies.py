"""Proxies in front of the APIs, and of the object store and PostgreSQL, which fail on request."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers import free_port

REFUSALS = {
    "500": ("InternalError", "Try again."),
    "503": ("SlowDown", "Reduce your request rate."),
    "507": ("XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),  # MinIO's
}


@dataclass
class StoreFault:
    """What the store does to requests of a method below a path, so many times."""

    kind: str
    """500, 503, 507 (its disk is full), hang (no answer), reset, cut (the body ends before its length), short (fewer
    bytes than asked for) or flip (one byte of the body is another)."""
    method: str = ""
    """Empty: every method."""
    path: str = ""
    """A part of the path; empty: every path."""
    count: int = 10**9
    num_hit: int = 0

    def takes(self, method: str, path: str) -> bool:
        """Return whether the request fails; counts it if so."""
        if self.num_hit >= self.count or self.method not in ("", method) or self.path not in path:
            return False
        self.num_hit += 1
        return True


class StoreProxy:
    """Forwards to an S3 server of this machine."""

    def __init__(self, upstream_port: int) -> None:
        self.faults: list[StoreFault] = []
        self.requests: list[tuple[str, str]] = []
        """Method and path of each request so far."""
        self._released = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                proxy.handle(self, upstream_port)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        class QuietServer(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing of clients that were killed."""

        self._server = QuietServer(("127.0.0.1", free_port()), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="store-proxy", daemon=True).start()

    def fail(self, kind: str, *, method: str = "", path: str = "", count: int = 10**9) -> StoreFault:
        """Begin to fail."""
        self._released.clear()
        fault = StoreFault(kind, method, path, count)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Answer everything from now on; requests that hang are closed."""
        self.faults.clear()
        self._released.set()

    def stop(self) -> None:
        """Close the port."""
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler, upstream_port: int) -> None:
        """Answer one request, from upstream or by a fault."""
        body = request.rfile.read(int(request.headers.get("content-length", "0")))
        method, path = str(request.command), request.path
        self.requests.append((method, path))
        kind = next((fault.kind for fault in self.faults if fault.takes(method, path)), "")
        if kind in ("hang", "reset"):
            if kind == "hang":
                self._released.wait(600)
            request.close_connection = True
            return
        if kind in REFUSALS:
            code, message = REFUSALS[kind]
            error = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            self._answer(request, int(kind), [], error.encode())
            return
        upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=60)
        upstream.request(method, path, body, dict(request.headers.items()))
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _OWN_HEADERS]
        self._answer(request, response.status, headers, content, kind, response.getheader("content-length"))

    def _answer(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        kind: str = "",
        length: str | None = None,
    ) -> None:
        if kind == "short":
            content, length = content[: len(content) // 2], None
        if kind == "flip" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        is_head = request.command == "HEAD"
        request.send_response(status)
        for name, value in headers:
            request.send_header(name, value)
        request.send_header("content-length", (length or "0") if is_head else str(len(content)))
        request.end_headers()
        if kind == "cut":
            content, request.close_connection = content[: len(content) // 2], True
        if not is_head:
            with suppress(OSError):
                request.wfile.write(content)


_OWN_HEADERS = ("content-length", "transfer-encoding", "connection", "date", "server")

COMMIT = b"COMMIT\0"
"""End of the message by which psycopg commits."""


class TcpProxy:
    """Forwards connections to servers in turn. If one does not listen, its connections go to the next."""

    def __init__(self, upstream_ports: Callable[[], Sequence[int]]) -> None:
        self._upstream_ports = upstream_ports
        self._turns = itertools.count()
        self._listener = socket.create_server(("127.0.0.1", free_port()), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = self._connected()
        if server is None:
            client.close()
            return
        pair = _Pair(client, server)
        threading.Thread(target=pair.pump_answers, daemon=True).start()
        with suppress(OSError):
            self._pump_requests(pair)
        pair.close()

    def _connected(self) -> socket.socket | None:
        ports, turn = self._upstream_ports(), next(self._turns)
        for number in range(len(ports)):
            with suppress(OSError):
                server = socket.create_connection(("127.0.0.1", ports[(turn + number) % len(ports)]), timeout=10)
                server.settimeout(None)
                return server
        return None

    def _pump_requests(self, pair: _Pair) -> None:
        while data := pair.client.recv(2**16):
            pair.server.sendall(data)


class PostgresProxy(TcpProxy):
    """Forwards connections to PostgreSQL, and can lose the answer to a commit.

    A client then cannot know whether its transaction was committed.
    """

    def __init__(self, upstream_port: Callable[[], int]) -> None:
        self._lock = threading.Lock()
        self._lost_commits: list[bytes] = []
        self.before_commit: tuple[bytes, Callable[[], None]] | None = None
        """Called instead of the next commit of a transaction with this text, and before it is sent on."""
        self.num_lost = 0
        super().__init__(lambda: [upstream_port()])

    def lose_answers_of_commits(self, *texts: str) -> None:
        """Cut the connection after the next commit of a transaction that contains each text, before its answer."""
        with self._lock:
            self._lost_commits += [text.encode() for text in texts]

    def _pump_requests(self, pair: _Pair) -> None:
        transaction = b""
        while data := pair.client.recv(2**16):
            transaction += data
            if data.endswith(COMMIT):
                with self._lock:
                    lost = next((text for text in self._lost_commits if text in transaction), None)
                    if lost is not None:
                        self._lost_commits.remove(lost)
                        self.num_lost += 1
                    hook = self.before_commit
                    if hook is not None and hook[0] in transaction:
                        self.before_commit = None
                    else:
                        hook = None
                transaction = b""
                if hook is not None:
                    hook[1]()
                if lost is not None:
                    pair.is_deaf = True
                    pair.server.sendall(data)
                    time.sleep(0.3)  # until PostgreSQL has committed
                    return
            pair.server.sendall(data)


class _Pair:
    """The two sockets of one connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_deaf = False
        """Whether the server's answers are dropped."""

    def pump_answers(self) -> None:
        """Send the server's answers on until it closes the connection."""
        with suppress(OSError):
            while data := self.server.recv(2**16):
                if not self.is_deaf:
                    self.client.sendall(data)
        self.close()

    def close(self) -> None:
        """Close both sides at once."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
