"""The audit of dependencies asks a service about every pinned package, and says when it could not."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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
    """OSV and a registry, both with one finding."""

    def do_GET(self) -> None:
        """Answer as a registry that knows each project's newest release only."""
        newest = {"/registry/jinja2/json": "3.0.0", "/registry/redis/json": "5.0.0", "/registry/torch/json": "2.9.0"}
        if self.path == "/registry/odd/json":
            self._send({"detail": "a registry that lists no vulnerabilities"})
            return
        if self.path not in newest:
            self.send_error(404)
            return
        known = [{"id": "PYSEC-1", "aliases": [FINDING["id"]]}] if "jinja2" in self.path else []
        self._send({"info": {"version": newest[self.path]}, "vulnerabilities": known})

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = query["package"]["name"]
        asked[name] = query["version"]
        self._send({"vulns": [FINDING]} if name == "jinja2" else {})

    def _send(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
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
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def audit(
    folder: Path, *, osv: str, registry: str = "", decisions: str = "", pinned: dict[str, str] = PINNED
) -> subprocess.CompletedProcess[str]:
    pins, decided = folder / "pinned.txt", folder / "decisions.md"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in pinned.items()))
    decided.write_text(f"Some words.\n\n{decisions}\n")
    # The cache would remember what another service answered.
    services = {"OSV_URL": f"{osv}/v1/query", "REGISTRY_URL": f"{registry or osv}/registry"}
    environment = {**os.environ, **services, "DECISIONS": str(decided), "XDG_CACHE_HOME": str(folder)}
    command = [str(ROOT / ".ci" / "audit"), str(pins)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_a_finding_fails_until_it_is_decided(tmp_path: Path, service: str) -> None:
    done = audit(tmp_path, osv=service, decisions="GHSA-aaaa-bbbb-cccc in a sentence is no decision")
    assert done.returncode == 1, done.stderr
    assert "GHSA-aaaa-bbbb-cccc" in done.stderr
    assert asked == PINNED
    done = audit(tmp_path, osv=service, decisions="| GHSA-aaaa-bbbb-cccc | only users with the key render templates |")
    assert done.returncode == 0, done.stderr
    assert "no open finding" in done.stdout


def test_the_registry_is_asked_where_osv_does_not_answer(tmp_path: Path, service: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = audit(tmp_path, osv=nowhere, registry=service)
    assert done.returncode == 1
    assert "jinja2 3.0.0 has GHSA-aaaa-bbbb-cccc, PYSEC-1, without a decision" in done.stderr
    assert "the registry answered for 2 of 3 pins" in done.stdout
    decided = "| GHSA-aaaa-bbbb-cccc | no template is rendered |"
    done = audit(tmp_path, osv=nowhere, registry=service, decisions=decided, pinned={**PINNED, "odd": "1.0"})
    assert done.returncode == 3, done.stderr
    assert "NOT AUDITED: torch 2.8.0, odd 1.0" in done.stderr
    assert audit(tmp_path, osv=nowhere, registry=service, pinned={"redis": "5.0.0"}).returncode == 0


def test_an_audit_that_did_not_take_place_says_so(tmp_path: Path) -> None:
    done = audit(tmp_path, osv=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 3
    assert "NOT AUDITED: jinja2 3.0.0, redis 5.0.0, torch 2.8.0" in done.stderr
    assert "no open finding" not in done.stdout
