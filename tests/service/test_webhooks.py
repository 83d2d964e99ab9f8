"""``/webhooks``: who may make which, what is shown, and replays."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.database import Database
from contract.events import NewEvent, append_events
from service.webhooks import service as webhooks
from tests.service.records import context_of, database_of, submit
from tests.service.test_access import new_key

URL = "https://93.184.216.34/hook"


def make(client: TestClient, **body: Any) -> Any:
    response = client.post("/webhooks", json={"url": URL, **body})
    assert response.status_code == 201, response.text
    return response.json()


def fail_job(database: Database, job_id: str) -> None:
    with database.write() as session:
        append_events(session, job_id, NewEvent("status", "The job has failed.", {"status": "failed"}, "error"))


def test_a_webhook_from_its_creation_to_its_end(either_client: TestClient) -> None:
    made = make(either_client, event_types=["job.failed"])
    assert made["secret"].startswith("whsec_")
    path = f"/webhooks/{made['id']}"
    shown = {name: value for name, value in made.items() if name != "secret"}
    assert either_client.get(path).json() == shown
    assert either_client.get("/webhooks").json()["data"] == [shown]
    job = submit(either_client)
    fail_job(database_of(either_client), job)
    listed = either_client.get(f"{path}/deliveries").json()["data"]
    assert [(d["event_type"], d["status"], d["job_id"]) for d in listed] == [("job.failed", "pending", job)]
    replayed = either_client.post(f"{path}/deliveries/{listed[0]['id']}/replay").json()
    assert (replayed["id"], replayed["status"], replayed["num_tries"]) == (listed[0]["id"], "pending", 0)
    changed = either_client.patch(path, json={"is_enabled": False, "event_types": []}).json()
    assert changed == {**shown, "is_enabled": False, "event_types": []}
    fail_job(database_of(either_client), job)
    assert len(either_client.get(f"{path}/deliveries").json()["data"]) == 1, "it is switched off"
    assert either_client.post(f"/jobs/{job}/cancel").is_success
    assert either_client.delete(f"/jobs/{job}").is_success
    assert either_client.get(f"{path}/deliveries").json()["data"] == [], "they are deleted with the job"
    assert either_client.delete(path).json() == {"object": "webhook", "id": made["id"], "deleted": True}
    assert either_client.get(path).status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.216.34/hook",
        "https://10.1.2.3/hook",
        "https://127.0.0.1:8000/jobs",
        "https://169.254.169.254/latest",
        "https://[::ffff:7f00:1]/",
        "https://user:word@93.184.216.34/",
        "https://no-such-host.invalid/",
        "https://a..b/",
        "https://93.184.216.34:99999/",
        "file:///etc/passwd",
        "hook",
    ],
)
def test_addresses_that_the_operator_does_not_allow_are_refused(shared_client: TestClient, url: str) -> None:
    response = shared_client.post("/webhooks", json={"url": url})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, "url"), error
    assert url in error["message"]
    made = make(shared_client)
    assert shared_client.patch(f"/webhooks/{made['id']}", json={"url": url}).status_code == 422
    assert shared_client.delete(f"/webhooks/{made['id']}").is_success


def test_other_owners_and_readers(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(client)
    path = f"/webhooks/{made['id']}"
    somebody, reader = new_key(client, "somebody"), new_key(client, "admin", "read")
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/deliveries"), ("PATCH", path)):
        body = {"json": {}} if method == "PATCH" else {}
        assert client.request(method, where, headers=somebody, **body).status_code == 404, (method, where)
    assert client.get("/webhooks", headers=somebody).json()["data"] == []
    assert client.get(path, headers=reader).is_success
    assert client.post("/webhooks", json={"url": URL}, headers=reader).status_code == 403
    assert client.post(f"{path}/deliveries/msg_x/replay").status_code == 404
    monkeypatch.setattr(webhooks, "MAX_WEBHOOKS", 2)
    make(client)
    assert client.post("/webhooks", json={"url": URL}).json()["error"]["code"] == "quota_exceeded"
    assert client.post("/webhooks", json={"url": URL}, headers=somebody).is_success
    assert context_of(client).settings.webhook_network == "public"
