"""An OpenAI-compatible endpoint on the loopback that answers every known problem with its reference solution.

With it, cross-entropy on y* is an ordinary job: mode trd with a served teacher that only returns text. It refuses
unknown problems and requests from other machines.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving_references(answers: Mapping[str, str]) -> Iterator[str]:
    """Yield the endpoint's base URL on a free port of 127.0.0.1; the server stops with the context."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = answers.get(body["messages"][-1]["content"])
            document: dict[str, Any]
            status, document = HTTPStatus.NOT_FOUND, {"error": {"message": "no such problem"}}
            if answer is not None:
                message = {"role": "assistant", "content": answer}
                choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
                status, document = HTTPStatus.OK, {"choices": choices}
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: the run has its own log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
