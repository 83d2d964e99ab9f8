"""What other owners notice while one owner attacks the service.

    python -m benchmarks.service_attack

starts the service on SQLite, with one API process, and times `/healthz`, another owner's `GET /jobs`, and that owner's
small upload, first without an attacker and then during each attack. An attack is repeated while it is measured.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from benchmarks.machine import describe_machine
from benchmarks.service_site import Ours, Site

RESULTS = Path(__file__).parent / "results"
MAX_MS = 1000.0
"""Longest wait of anybody else that is accepted."""
JSONL = {"content-type": "application/jsonl"}
SMALL = b'{"problem": "1 + 1", "answer": "2"}\n'


@dataclass(frozen=True)
class Attacker:
    """The attacking owner, whose clients leave after 15 s."""

    url: str
    key: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=15)

    def upload(self, content: bytes) -> str | None:
        with self.client() as client:
            return client.post("/datasets", content=content, headers=JSONL).json().get("id")

    def upload_head(self, num_bytes: int) -> bytes:
        head = f"POST /datasets HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.key}\r\ncontent-type: "
        return f"{head}application/jsonl\r\ncontent-length: {num_bytes}\r\n\r\n".encode()

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)


def _uploads(attacker: Attacker, stop: threading.Event, content: bytes) -> None:
    while not stop.is_set():
        with suppress(httpx.HTTPError):
            attacker.upload(content)


def _abandoned_uploads(attacker: Attacker, stop: threading.Event, content: bytes) -> None:
    """Leave each upload while it is checked."""
    while not stop.is_set():
        with attacker.connect() as connection, suppress(OSError):
            connection.sendall(attacker.upload_head(len(content)) + content)
            time.sleep(0.3)


def _unfinished_uploads(attacker: Attacker, stop: threading.Event, num_connections: int = 60) -> None:
    while not stop.is_set():
        connections = [attacker.connect() for _ in range(num_connections)]
        for connection in connections:
            with suppress(OSError):
                connection.sendall(attacker.upload_head(900_000_000) + SMALL * 30_000)
        time.sleep(1)
        for connection in connections:
            connection.close()


def _headers(attacker: Attacker, stop: threading.Event) -> None:
    while not stop.is_set():
        with attacker.connect() as connection, suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\nx-long: ")
            while not stop.is_set():
                connection.sendall(b"a" * 2**16)


def _previews(attacker: Attacker, stop: threading.Event) -> None:
    row = {"problem": "1" * (2**20 - 3000), "answer": "2", "solution": "1" * 2000}
    dataset = attacker.upload("".join(json.dumps({**row, "id": i}) + "\n" for i in range(4)).encode())
    with attacker.client() as client:
        while not stop.is_set():
            with suppress(httpx.HTTPError):
                client.get(f"/datasets/{dataset}/preview", params={"model": "tiny-student", "limit": 4})


def _refused_jobs(attacker: Attacker, stop: threading.Event) -> None:
    """Ask for jobs that need solutions which one row lacks."""
    rows = b"".join(b'{"problem": "%d", "answer": "2", "solution": "s"}\n' % i for i in range(10_000))
    with attacker.client() as client, suppress(httpx.HTTPError):
        dataset = attacker.upload(rows + SMALL)
        while not stop.is_set():
            client.post("/jobs", json={"mode": "opsd", "student": "tiny-student", "dataset": dataset, "task": "exact"})


def _long_specs(attacker: Attacker, stop: threading.Event) -> None:
    with attacker.client() as client, suppress(httpx.HTTPError):
        while not stop.is_set():
            body = {"mode": "opd", "student": "tiny-student", "teacher": "tiny-teacher", "dataset": "ds_0"}
            client.post("/jobs", json={**body, "metadata": {str(i): "x" * 30_000 for i in range(30)}})


def attacks() -> dict[str, tuple[int, Callable[[Attacker, threading.Event], None]]]:
    """Return the number of threads and the action of each attack by one owner."""
    note = pa.DictionaryArray.from_arrays(pa.array([0] * 300_000, pa.int32()), pa.array(["a" * 10**6]))
    columns = {"problem": note, "answer": pa.array(["1"] * len(note))}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", dictionary_pagesize_limit=2**30, store_schema=False)
    shared, blank = buffer.getvalue(), SMALL + b"\n" * 10**7
    array = b"[" + b"{}," * 3_000_000 + b"{}]"
    return {
        f"Parquet: {len(shared)} bytes, 300,000 rows share 1 MB": (4, lambda a, s: _uploads(a, s, shared)),
        "the same, and the client leaves": (4, lambda a, s: _abandoned_uploads(a, s, shared)),
        "10 MB of blank lines": (4, lambda a, s: _uploads(a, s, blank)),
        "a JSON array of 3,000,000 empty objects": (4, lambda a, s: _uploads(a, s, array)),
        "60 uploads that never end": (1, _unfinished_uploads),
        "headers that never end, without a key": (8, _headers),
        "previews of four rows of 1 MiB": (4, _previews),
        "jobs refused for a missing solution": (4, _refused_jobs),
        "specs of 0.9 MB": (4, _long_specs),
    }


def timed(ours: Ours, other_key: str, seconds: float) -> dict[str, list[float]]:
    """Return the milliseconds of each call of others, made in turns for `seconds`."""
    calls: dict[str, tuple[str, str, dict[str, object]]] = {
        "/healthz": ("GET", "/healthz", {}),
        "GET /jobs": ("GET", "/jobs", {}),
        "POST /datasets": ("POST", "/datasets", {"content": SMALL, "headers": JSONL}),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.monotonic() + seconds
    with httpx.Client(
        base_url=ours.target.url, headers={"authorization": f"Bearer {other_key}"}, timeout=600
    ) as client:
        while time.monotonic() < deadline:
            for name, (method, path, content) in calls.items():
                began = time.perf_counter()
                client.request(method, path, **content).raise_for_status()  # type: ignore[arg-type]
                taken[name].append((time.perf_counter() - began) * 1000)
            time.sleep(0.02)
    return taken


def _line(name: str, taken: dict[str, list[float]]) -> str:
    cells = []
    for values in taken.values():
        ordered = sorted(values)
        p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        cells += [f"{statistics.median(ordered):.0f}", f"{p95:.0f}", f"{ordered[-1]:.0f}"]
    return f"| {name} | {' | '.join(cells)} |"


def measure(seconds: float) -> tuple[list[str], list[str]]:
    """Return the table's lines and what took too long."""
    lines, missed = [], []
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="trd-benchmark-")))
        ours = running.enter_context(Site("sqlite", folder, running).ours())
        keys = [
            ours.call("POST", "/keys", json={"name": owner, "owner": owner, "scopes": ["submit"]})["key"]
            for owner in ("other", "attacker", "second", "third")
        ]
        timed(ours, keys[0], 1)
        lines.append(_line("none", timed(ours, keys[0], seconds)))
        planned = [(name, 1, *attack) for name, attack in attacks().items()]
        planned[1:1] = [(f"by {owners} owners: {planned[0][0]}", owners, *planned[0][2:]) for owners in (2, 3)]
        for name, num_owners, num_threads, attack in planned:
            stop = threading.Event()
            attackers = [Attacker(ours.target.url, key) for key in keys[1 : 1 + num_owners]]
            threads = [threading.Thread(target=attack, args=(a, stop)) for a in attackers for _ in range(num_threads)]
            for thread in threads:
                thread.start()
            time.sleep(1.5)
            taken = timed(ours, keys[0], seconds)
            stop.set()
            lines.append(_line(name, taken))
            sys.stderr.write(lines[-1] + "\n")
            missed += [f"{name}: {call} {max(taken[call]):.0f} ms" for call in taken if max(taken[call]) > MAX_MS]
            for thread in threads:
                thread.join()
    return lines, missed


def main() -> int:
    """Run the command line; return 1 if a call took longer than `MAX_MS`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each attack")
    parser.add_argument("--out", type=Path, default=RESULTS / "service_attack.md")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    lines, missed = measure(options.seconds)
    calls = ("`/healthz`", "`GET /jobs`", "`POST /datasets`")
    header = [
        "# What others notice of an attacker",
        "",
        f"One uvicorn process on SQLite. Another owner's calls in milliseconds (median, 95 %, longest), for "
        f"{options.seconds:g} s of each attack; the attacker runs on the same machine.",
        *describe_machine(("fastapi", "uvicorn", "SQLAlchemy", "pyarrow")),
        f"Load average before and after: {load_before:.1f}, {os.getloadavg()[0]:.1f}.",
        "",
        f"| attack | {' | '.join(f'{call} median | 95 % | longest' for call in calls)} |",
        f"|---|{'---:|' * 9}",
    ]
    ending = f"Longer than {MAX_MS:.0f} ms: {'; '.join(missed)}." if missed else f"No call took {MAX_MS:.0f} ms."
    options.out.write_text("\n".join([*header, *lines, "", ending, ""]), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
