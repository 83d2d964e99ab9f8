"""``python -m tests.service.record_examples``: real answers of the real application, for the OpenAPI document.

Writes `service.openapi.EXAMPLES_FILE` anew. To be run when an answer's shape changes; a test tells when it has.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from contract.events import NewEvent, append_events
from service.app import create_app
from service.openapi import EXAMPLES_FILE
from service.settings import Settings
from tests.environment import settings_from
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.finished_job import MODELS, add_finished_job
from tests.service.records import context_of, upload
from tests.service.test_chats import scripted_worker

ROWS = (
    '{"problem": "12+3*2", "answer": "18", "solution": "12+6;18"}\n'
    '{"problem": "7-2*3", "answer": "1", "solution": "7-6;1"}\n'
)
FORM = {"file": "(the rows, as a file part)"}
LARGE = "training_examples.jsonl"


class Recorder:
    """Makes calls and keeps what was said."""

    def __init__(self, client: TestClient) -> None:
        self._client = client
        self.examples: dict[str, Any] = {}

    def call(
        self, name: str, path: str | None = None, *, shown: dict[str, Any] | None = None, **request: Any
    ) -> dict[str, Any]:
        """Call the operation `name`, at `path` where its template has parameters; `shown` is its body's example."""
        method, template = name.split(" ")
        response = self._client.request(method, path or template, **request)
        assert response.is_success, (name, response.text)
        entry = self.examples.setdefault(name, {})
        body = {"application/json": request["json"]} if "json" in request else shown
        if body is not None:
            entry["request"] = body
        entry.setdefault("responses", {})[str(response.status_code)] = {"application/json": response.json()}
        document: dict[str, Any] = response.json()
        return document

    def text(self, name: str, path: str, media_type: str, shown: str | None = None, **request: Any) -> None:
        """Record an answer that is no JSON; `shown` stands for bytes."""
        method = name.partition(" ")[0]
        response = self._client.request(method, path, **request)
        assert response.is_success, (name, response.text)
        responses = self.examples.setdefault(name, {}).setdefault("responses", {})
        responses.setdefault(str(response.status_code), {})[media_type] = shown or response.text


def record(client: TestClient, storage_dir: Path) -> dict[str, Any]:
    """Record examples of every operation, by its method and path."""
    recorder = Recorder(client)
    done = add_finished_job(client, context_of(client).database, storage_dir)
    _record_jobs(recorder, upload(client), client)
    _record_run(recorder, done)
    _record_data(recorder, client)
    _record_webhooks(recorder, client, done)
    place = {"job_id": done, "trajectory_id": "0:0", "side": "refined", "token": 1, "text": "1 is", "wait_seconds": 0}
    recorder.call("POST /view", json=place)
    _record_chat(recorder, client, done)
    _record_openai(recorder, upload(client), done)
    for path in ("/healthz", "/readyz"):
        recorder.call(f"GET {path}")
    recorder.text("GET /metrics", "/metrics", "text/plain")
    shown = recorder.examples["GET /metrics"]["responses"]["200"]
    shown["text/plain"] = shown["text/plain"][shown["text/plain"].index("# HELP trd_jobs ") :]  # not each route's
    return recorder.examples


def _record_jobs(recorder: Recorder, dataset: str, client: TestClient) -> None:
    body = {"mode": "trd", **MODELS, "dataset": dataset, "task": "exact", "lora": None}
    body |= {"optim": {"learning_rate": 0.001, "batch_size": 32}, "evaluation": {"holdout": 0.1, "k": 4}}
    recorder.call("POST /jobs", "/jobs?dry_run=true", json=body)
    job_id = recorder.call("POST /jobs", json=body)["id"]
    key = {"idempotency-key": "nightly"}
    for _ in range(2):
        recorder.call("POST /jobs/{job_id}/clone", f"/jobs/{job_id}/clone", json={"seed": 1}, headers=key)
    for action in ("pause", "resume", "cancel"):
        recorder.call(f"POST /jobs/{{job_id}}/{action}", f"/jobs/{job_id}/{action}")
    recorder.call("GET /jobs", "/jobs?limit=1")
    recorder.call("GET /jobs/{job_id}", f"/jobs/{job_id}")
    recorder.call("DELETE /jobs/{job_id}", f"/jobs/{job_id}")


def _record_run(recorder: Recorder, job_id: str) -> None:
    base, template = f"/jobs/{job_id}", "/jobs/{job_id}"
    for part in ("events", "metrics", "trajectories", "trajectories/outcomes", "diagnosis", "evaluations"):
        recorder.call(f"GET {template}/{part}", f"{base}/{part}")
    recorder.call(f"GET {template}/probe-samples", f"{base}/probe-samples")
    recorder.call(f"GET {template}/trajectories/{{trajectory_id}}", f"{base}/trajectories/0:0")
    events = {"accept": "text/event-stream"}
    recorder.text(f"GET {template}/events", f"{base}/events", "text/event-stream", headers=events)
    recorder.call(f"GET {template}/checkpoints", f"{base}/checkpoints")
    name = f"{template}/checkpoints/{{step}}"
    recorder.call(f"GET {name}", f"{base}/checkpoints/2")
    file = f"{base}/checkpoints/2/files/model/config.json"
    recorder.text(f"GET {name}/files/{{name}}", file, "application/octet-stream")
    part = {"range": "bytes=0-9"}
    recorder.text(f"GET {name}/files/{{name}}", file, "application/octet-stream", headers=part)
    recorder.text(f"GET {name}/archive", f"{base}/checkpoints/2/archive", "application/x-tar", "(a tar)")
    recorder.call(f"DELETE {name}", f"{base}/checkpoints/1")


def _record_data(recorder: Recorder, client: TestClient) -> None:
    shown = {"application/jsonl": ROWS, "multipart/form-data": FORM}
    media_type = {"content-type": "application/jsonl"}
    dataset = recorder.call("POST /datasets", shown=shown, content=ROWS, headers=media_type)["id"]
    recorder.call("GET /datasets", "/datasets?limit=1")
    recorder.call("GET /datasets/{dataset_id}", f"/datasets/{dataset}")
    preview = f"/datasets/{dataset}/preview?model=tiny-student&teacher=tiny-teacher&task=exact&limit=1"
    recorder.call("GET /datasets/{dataset_id}/preview", preview)
    recorder.call("DELETE /datasets/{dataset_id}", f"/datasets/{dataset}")
    recorder.call("GET /models")
    recorder.call("GET /models/{name}", "/models/tiny-student")
    key = recorder.call("POST /keys", json={"name": "laptop", "owner": "ann", "scopes": ["submit"]})
    recorder.examples["POST /keys"]["responses"]["201"]["application/json"]["key"] = "trd_(shown once)"
    recorder.call("GET /keys", "/keys?limit=1")
    recorder.call("POST /keys/{key_id}/rotate", f"/keys/{key['id']}/rotate", json={"grace_seconds": 3600})
    recorder.examples["POST /keys/{key_id}/rotate"]["responses"]["201"]["application/json"]["key"] = "trd_(shown once)"
    recorder.call("DELETE /keys/{key_id}", f"/keys/{key['id']}")
    recorder.call("GET /audit", "/audit?limit=2")
    recorder.call("GET /retention", "/retention?events_days=30")


def _record_webhooks(recorder: Recorder, client: TestClient, done: str) -> None:
    wanted = {"url": "https://93.184.216.34/hooks", "event_types": ["job.succeeded", "job.failed"]}
    webhook = recorder.call("POST /webhooks", json=wanted)["id"]
    recorder.examples["POST /webhooks"]["responses"]["201"]["application/json"]["secret"] = "whsec_(shown once)"
    with context_of(client).database.write() as session:
        append_events(session, done, NewEvent("status", "The job has succeeded.", {"status": "succeeded"}))
    base, template = f"/webhooks/{webhook}", "/webhooks/{webhook_id}"
    recorder.call("GET /webhooks", "/webhooks?limit=1")
    recorder.call(f"GET {template}", base)
    recorder.call(f"PATCH {template}", base, json={"is_enabled": True})
    delivery = recorder.call(f"GET {template}/deliveries", f"{base}/deliveries?limit=1")["data"][0]["id"]
    recorder.call(f"POST {template}/deliveries/{{delivery_id}}/replay", f"{base}/deliveries/{delivery}/replay")
    recorder.call(f"DELETE {template}", base)


def _record_chat(recorder: Recorder, client: TestClient, done: str) -> None:
    name, question = "POST /jobs/{job_id}/checkpoints/{step}/chat", {"messages": [{"role": "user", "content": "1+1"}]}
    worker = scripted_worker(client, "1+1 is ", "2", end={"num_tokens": 4, "is_truncated": False})
    recorder.text(name, f"/jobs/{done}/checkpoints/2/chat", "text/event-stream", json=question)
    worker.join()
    recorder.examples[name]["request"] = {"application/json": {"model": "checkpoint", **question}}


def _record_openai(recorder: Recorder, dataset: str, done: str) -> None:
    file = {"file": (LARGE, ROWS.encode())}
    shown = {"multipart/form-data": {**FORM, "purpose": "fine-tune"}}
    uploaded = recorder.call("POST /v1/files", files=file, data={"purpose": "fine-tune"}, shown=shown)["id"]
    recorder.call("GET /v1/files", "/v1/files?limit=1")
    template = "/v1/files/{dataset_id}"
    recorder.call(f"GET {template}", f"/v1/files/{uploaded}")
    recorder.text(f"GET {template}/content", f"/v1/files/{uploaded}/content", "application/jsonl")
    recorder.call(f"DELETE {template}", f"/v1/files/{uploaded}")
    method = {"type": "trd", "trd": {"teacher": MODELS["teacher"], "task": "exact", "lora": None}}
    body = {"model": MODELS["student"], "training_file": dataset, "method": method, "seed": 1, "suffix": "first"}
    job_id = recorder.call("POST /v1/fine_tuning/jobs", json=body)["id"]
    jobs = "/v1/fine_tuning/jobs"
    for action in ("pause", "resume", "cancel"):
        recorder.call(f"POST {jobs}/{{job_id}}/{action}", f"{jobs}/{job_id}/{action}")
    recorder.call(f"GET {jobs}", f"{jobs}?limit=1")
    recorder.call(f"GET {jobs}/{{job_id}}", f"{jobs}/{done}")
    for part in ("events", "checkpoints"):
        recorder.call(f"GET {jobs}/{{job_id}}/{part}", f"{jobs}/{done}/{part}")
    recorder.call("GET /v1/models")
    recorder.call("GET /v1/models/{name}", f"/v1/models/{MODELS['student']}")


def main() -> None:
    """Record everything on a fresh embedded service in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_from(Settings, {"TRD_DATA_DIR": folder, "TRD_API_KEY": ADMIN_KEY})
        with TestClient(create_app(settings), headers=AUTHORIZED) as client:
            examples = record(client, Path(folder) / "storage")
    EXAMPLES_FILE.write_text(json.dumps(examples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
