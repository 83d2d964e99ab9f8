"""A hub that speaks what huggingface_hub's upload asks for, to the address where it listens: repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedHub:
    """The state of the hub."""

    def __init__(self, token: str, url: str) -> None:
        self.token = token
        self.url = url
        self.repos: dict[str, dict[str, bytes]] = {}
        """Files by repository and path."""
        self.is_private: dict[str, bool] = {}
        self.messages: list[str] = []
        """Messages of the commits."""
        self.num_failures = 0
        """Requests that get the status 503 before it works."""
        self.upload_url: str | None = None
        """Address to which the hub sends uploads; None: its own."""
        self.blobs: dict[str, bytes] = {}
        """Content by sha256."""

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Return status and document."""
        if self.num_failures > 0:
            self.num_failures -= 1
            return 503, {"error": "the hub is being repaired"}
        if method == "PUT":  # an upload has a signed URL instead of the token
            digest = path.rpartition("/")[2]
            self.blobs[digest] = body
            return (200 if hashlib.sha256(body).hexdigest() == digest else 400), {}
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            is_card = json.loads(body)["content"].startswith("---\n")
            return (200, {"warnings": [], "errors": []}) if is_card else (400, {"errors": [{"message": "no metadata"}]})
        if path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".png")) else "regular" for name in files}
            return 200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
        if path.endswith(".git/info/lfs/objects/batch"):
            target = self.upload_url or f"{self.url}/lfs"
            wanted = [file for file in json.loads(body)["objects"] if file["oid"] not in self.blobs]
            actions = [{**file, "actions": {"upload": {"href": f"{target}/{file['oid']}"}}} for file in wanted]
            return 200, {"objects": actions}
        if path.endswith("/commit/main"):
            return self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        return 404, {"error": f"not in the script: {method} {path}"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{wanted['organization']}/{wanted['name']}"
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.repos[repo] = {}
        self.is_private[repo] = wanted["visibility"] == "private"
        return 200, {"url": f"{self.url}/{repo}"}

    def _commit(self, repo: str, body: bytes) -> tuple[int, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            else:
                self.repos[repo][value["path"]] = self.blobs[value["oid"]]
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40}


@contextmanager
def serving_hub(token: str) -> Iterator[ScriptedHub]:
    """Serve a hub on a free port of 127.0.0.1 until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            path = self.path.partition("?")[0]
            status, document = hub.answer(self.command, path, self.headers.get("authorization", ""), body)
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = ScriptedHub(token, f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
