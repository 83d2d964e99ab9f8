"""The few calls a user makes: upload, submit, watch, download."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import httpx

FINAL_STATUSES = ("succeeded", "failed", "cancelled")
BAR_WIDTH = 24
QUIET_SECONDS = 5.0
"""A log gets a line at each new phase and then every so often; a terminal, one line that is kept up to date."""


class JobFailedError(RuntimeError):
    """The job did not succeed; the message is what the service says of it."""


def upload(client: httpx.Client, path: Path) -> str:
    """Upload a JSONL file; returns the dataset's id."""
    with path.open("rb") as file:
        answer = client.post("/datasets", files={"file": (path.name, file, "application/jsonl")})
    return str(_checked(answer)["id"])


def submit(client: httpx.Client, spec: dict[str, Any]) -> str:
    """Submit a job; returns its id."""
    return str(_checked(client.post("/jobs", json=spec))["id"])


def watch(client: httpx.Client, job_id: str, *, poll_seconds: float = 1.0) -> dict[str, Any]:
    """Show the job's progress until it ends; returns it. Raises `JobFailedError` unless it succeeded."""
    shown, shown_at = None, 0.0
    while True:
        job = _checked(client.get(f"/jobs/{job_id}"))
        if sys.stdout.isatty():
            print("\r" + _progress_line(job).ljust(100), end="", flush=True)
        elif (job["status"], job["phase"]) != shown or time.monotonic() - shown_at > QUIET_SECONDS:
            print(_progress_line(job), flush=True)
            shown, shown_at = (job["status"], job["phase"]), time.monotonic()
        if job["status"] in FINAL_STATUSES:
            print()
            break
        time.sleep(poll_seconds)
    if job["status"] != "succeeded":
        error = job["error"] or {}
        raise JobFailedError(f"{job_id} {job['status']}: {error.get('message')} — {error.get('hint')}")
    return job


def download(client: httpx.Client, job_id: str, folder: str, target: Path) -> int:
    """Download one folder of the newest checkpoint and verify it; returns the number of bytes.

    Raises `JobFailedError` where a file is not what the manifest says.
    """
    manifest = _checked(client.get(f"/jobs/{job_id}/checkpoints/latest"))
    num_bytes = 0
    for file in manifest["files"]:
        if not file["name"].startswith(folder + "/"):
            continue
        path = target / file["name"].removeprefix(folder + "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with client.stream("GET", file["url"]) as answer, path.open("wb") as output:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                digest.update(piece)
                output.write(piece)
        if digest.hexdigest() != file["sha256"]:
            raise JobFailedError(f"{file['name']}: sha256 {digest.hexdigest()} is not the manifest's {file['sha256']}")
        num_bytes += file["num_bytes"]
    return num_bytes


def evaluations(client: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    """The job's evaluations, by step; the first is the baseline."""
    return sorted(_checked(client.get(f"/jobs/{job_id}/evaluations"))["data"], key=lambda row: row["step"])


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        raise JobFailedError(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
    document: dict[str, Any] = answer.json()
    return document


def _progress_line(job: dict[str, Any]) -> str:
    done, total = job["phase_done"] or 0, job["phase_total"] or 0
    filled = BAR_WIDTH * done // total if total else 0
    bar = "█" * filled + "·" * (BAR_WIDTH - filled)
    eta = f"ETA {job['eta_seconds']:.0f} s" if job["eta_seconds"] is not None else "ETA —"
    loss = job["latest_metrics"].get("loss")
    shown_loss = f"  loss {loss:.3f}" if loss is not None else ""
    step = f"step {job['step']}/{job['num_steps'] or '?'}"
    return f"{job['status']:<10} {job['phase'] or '':<10} {bar} {done}/{total}  {step}  {eta}{shown_loss}"
