"""The audit of dependencies asks a service about every pinned package, and says when it could not."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.servers import free_port

ROOT = Path(__file__).parents[2]
PINNED = {"jinja2": "3.0.0", "redis": "5.0.0", "torch": "2.8.0"}
FINDING = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "modified": "2026-01-01T00:00:00Z",
    "summary": "A template escapes its sandbox",
    "affected": [{"package": {"name": "jinja2", "ecosystem": "PyPI"}, "ranges": [], "versions": ["3.0.0"]}],
}
asked: dict[str, str] = {}


class Vulnerabilities(BaseHTTPRequestHandler):
    """OSV with one finding."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = query["package"]["name"]
        asked[name] = query["version"]
        body = json.dumps({"vulns": [FINDING]} if name == "jinja2" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vulnerabilities)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def audit(folder: Path, service: str, decisions: str = "") -> subprocess.CompletedProcess[str]:
    pinned, decided = folder / "pinned.txt", folder / "decisions.md"
    pinned.write_text("".join(f"{name}=={version}\n" for name, version in PINNED.items()))
    decided.write_text(f"Some words.\n\n{decisions}\n")
    # The cache would remember what another service answered.
    environment = {**os.environ, "OSV_URL": service, "DECISIONS": str(decided), "XDG_CACHE_HOME": str(folder)}
    command = [str(ROOT / ".ci" / "audit"), str(pinned)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_a_finding_fails_until_it_is_decided(tmp_path: Path, service: str) -> None:
    done = audit(tmp_path, service, "GHSA-aaaa-bbbb-cccc in a sentence is no decision")
    assert done.returncode == 1, done.stderr
    assert "GHSA-aaaa-bbbb-cccc" in done.stderr
    assert asked == PINNED
    done = audit(tmp_path, service, "| GHSA-aaaa-bbbb-cccc | only users with the key render templates |")
    assert done.returncode == 0, done.stderr
    assert "no open finding" in done.stdout


def test_an_audit_that_did_not_take_place_says_so(tmp_path: Path) -> None:
    done = audit(tmp_path, f"http://127.0.0.1:{free_port()}/v1/query")
    assert done.returncode == 3
    assert "was NOT AUDITED" in done.stderr
    assert "no open finding" not in done.stdout
