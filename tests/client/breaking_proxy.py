"""A TCP relay in front of a real server that breaks connections on request."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class BreakingProxy:
    """Passes bytes on. Each connection may be given a number of answer bytes after which it is cut."""

    def __init__(self, target_port: int) -> None:
        self.cut_after: deque[int | None] = deque()
        """Bytes of the answers to let through on the next connections, in order; None for all of them."""
        self.num_connections = 0
        self.num_answer_bytes = 0
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut_all(self) -> None:
        """Break every connection that is open."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            budget = self.cut_after.popleft() if self.cut_after else None
            server = socket.create_connection(("127.0.0.1", self._target_port))
            with self._lock:
                self._open |= {client, server}
            for source, target, limit in ((client, server, None), (server, client, budget)):
                threading.Thread(target=self._relay, args=(source, target, limit), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        is_answer = source.getpeername()[1] == self._target_port
        with suppress(OSError):
            while data := source.recv(65536):
                allowed = data if limit is None else data[:limit]
                if is_answer:
                    self.num_answer_bytes += len(allowed)
                target.sendall(allowed)
                if limit is not None:
                    limit -= len(allowed)
                    if limit <= 0:
                        break
        for connection in (source, target):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        with self._lock:
            for connection in self._open:
                connection.close()


@contextmanager
def breaking_proxy(target_port: int) -> Iterator[BreakingProxy]:
    proxy = BreakingProxy(target_port)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(5)
