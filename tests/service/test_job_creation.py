from __future__ import annotations

import base64
import json
import threading
import time
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import event, func, select

from contract.job_spec import JobSpec
from contract.tables import Job, JobEvent, JobTag
from tests.service.conftest import MakeClient
from tests.service.records import context_of, job_body, set_job, submit, upload


def num_jobs(client: TestClient) -> int:
    return len(client.get("/jobs", params={"limit": 100}).json()["data"])


def test_a_job_is_recorded_with_every_default_resolved(either_client: TestClient) -> None:
    body = job_body(either_client, name="first", tags=["a", "b", "a"], metadata={"who": "me"}, priority=3)
    response = either_client.post("/jobs", json=body)
    assert response.status_code == 201
    job = response.json()
    assert job["object"] == "job"
    assert job["id"].startswith("job_")
    assert (job["status"], job["attempt"], job["step"], job["queue_position"]) == ("queued", 0, 0, 1)
    assert (job["name"], job["tags"], job["metadata"]) == ("first", ["a", "b", "a"], {"who": "me"})
    assert (job["queue"], job["priority"], job["error"]) == ("trd-default", 3, None)
    assert job["created_at"].endswith("Z")
    resolved = JobSpec.model_validate(job["spec"])
    assert resolved == resolved.resolved()
    shown = either_client.get(f"/jobs/{job['id']}").json()
    assert shown.pop("expected_note"), "no worker is here"
    assert shown == {name: value for name, value in job.items() if name != "expected_note"}


def test_a_dry_run_resolves_and_estimates_and_makes_nothing(client: TestClient) -> None:
    body = job_body(client, optim={"batch_size": 8}, evaluation={"holdout": 0.1, "k": 2})
    response = client.post("/jobs?dry_run=true", json=body, headers={"idempotency-key": "dry"})
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "job.dry_run"
    assert answer["spec"]["preset"] == "trd"
    assert answer["estimate"]["num_problems"] == 40
    assert answer["estimate"]["num_heldout"] == 4
    assert answer["estimate"]["num_steps"] == 5
    (notice,) = answer["notices"]
    assert (notice["code"], notice["count"]) == ("budget_lowered", 4)
    assert "sampling.max_new_tokens = 448" in notice["message"]
    assert num_jobs(client) == 0
    job = client.post("/jobs", json=body, headers={"idempotency-key": "dry"}).json()
    assert job["spec"] == answer["spec"]


def test_a_lowered_budget_is_an_event_of_the_job(client: TestClient) -> None:
    events = client.get(f"/jobs/{submit(client)}/events").json()["data"]
    assert events[0]["type"] == "status"
    notices = [event for event in events if event["type"] == "notice"]
    assert [event["data"]["code"] for event in notices] == ["budget_lowered"]


def test_the_same_key_makes_one_job(either_client: TestClient) -> None:
    body = job_body(either_client)
    first = either_client.post("/jobs", json=body, headers={"idempotency-key": "k1"})
    shuffled = dict(reversed(body.items()))
    again = either_client.post("/jobs", json=shuffled, headers={"idempotency-key": "k1"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.json()["id"] == first.json()["id"]
    other_key = either_client.post("/jobs", json=body, headers={"idempotency-key": "k2"})
    assert other_key.json()["id"] != first.json()["id"]
    assert num_jobs(either_client) == 2


def test_the_same_key_with_another_body_is_refused(client: TestClient) -> None:
    body = job_body(client)
    client.post("/jobs", json=body, headers={"idempotency-key": "k"})
    response = client.post("/jobs", json={**body, "seed": 1}, headers={"idempotency-key": "k"})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "idempotency_key_reused"
    assert response.json()["error"]["param"] == "Idempotency-Key"


def test_a_replay_gives_the_job_even_when_it_could_not_be_made_now(client: TestClient) -> None:
    body = job_body(client)
    job_id = client.post("/jobs", json=body, headers={"idempotency-key": "k"}).json()["id"]
    client.post(f"/jobs/{job_id}/cancel")
    assert client.delete(f"/datasets/{body['dataset']}").status_code == 200
    again = client.post("/jobs", json=body, headers={"idempotency-key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, job_id)


def test_a_request_with_a_key_in_flight_is_answered_409(client: TestClient) -> None:
    body = job_body(client)
    with context_of(client).jobs.in_flight.holding("admin", "busy"):
        refused = client.post("/jobs", json=body, headers={"idempotency-key": "busy"})
        assert client.post("/jobs", json=body, headers={"idempotency-key": "other"}).status_code == 201
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_in_flight")
    assert (refused.headers["x-should-retry"], refused.headers["retry-after"]) == ("true", "1")
    assert client.post("/jobs", json=body, headers={"idempotency-key": "busy"}).status_code == 201


def test_requests_with_one_key_at_once_make_one_job(either_client: TestClient) -> None:
    body = job_body(either_client)
    answers: list[httpx.Response] = []

    def post() -> None:
        answers.append(either_client.post("/jobs", json=body, headers={"idempotency-key": "race"}))

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers].count(201) == 1
    assert {answer.status_code for answer in answers} <= {200, 201, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code != 409}) == 1
    assert len(either_client.get("/jobs").json()["data"]) == 1


def test_a_job_is_created_in_one_transaction(
    make_client: MakeClient, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.fleet.LOOK_SECONDS", 600.0)
    client = make_client(postgres_url)
    body = job_body(client, tags=["a", "b"])
    submit(client, dataset=body["dataset"])  # looks at the workers, which is good for the next ones
    boundaries: list[str] = []
    engine = context_of(client).database.engine
    for name in ("begin", "commit", "rollback"):
        event.listen(engine, name, lambda connection, name=name: boundaries.append(name))
    job_id = client.post("/jobs", json=body).json()["id"]
    assert boundaries == ["begin", "commit"]
    listed = client.get("/jobs", params={"tag": "b"}).json()["data"]
    assert [job["id"] for job in listed] == [job_id]
    events = client.get(f"/jobs/{job_id}/events").json()["data"]
    assert [item["sequence"] for item in events] == list(range(1, len(events) + 1))
    assert [item["type"] for item in events] == ["status"] + ["notice"] * (len(events) - 1)
    assert len(events) > 1, "the models' small contexts lower budgets, and the job has a notice of each"


def test_a_job_that_is_refused_leaves_nothing(either_client: TestClient) -> None:
    body = job_body(either_client, tags=["a"])
    refused = either_client.post("/jobs", json={**body, "dataset": "ds_none"})
    assert refused.json()["error"]["code"] == "dataset_not_found"
    assert either_client.post("/jobs", json={**body, "evaluation": {"dataset": "ds_none"}}).status_code == 422
    with context_of(either_client).database.read() as session:
        counts = [session.scalar(select(func.count()).select_from(table)) for table in (Job, JobEvent, JobTag)]
    assert counts == [0, 0, 0]


@pytest.mark.parametrize("count", ["many", "-1", "1.5", "9" * 5000, ""])
def test_a_retry_count_that_is_no_number_is_refused(client: TestClient, count: str) -> None:
    answer = client.post("/jobs", json=job_body(client), headers={"x-stainless-retry-count": count})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "x-stainless-retry-count")
    assert client.get("/jobs").json()["data"] == []


def test_a_client_that_says_it_retries_without_a_key_makes_one_job(client: TestClient) -> None:
    body = job_body(client)
    first = client.post("/jobs", json=body, headers={"x-stainless-retry-count": "0"})
    retried = client.post("/jobs", json=body, headers={"x-stainless-retry-count": "1"})
    assert retried.json()["id"] == first.json()["id"]
    meant = client.post("/jobs", json=body, headers={"x-stainless-retry-count": "0"})
    assert meant.json()["id"] != first.json()["id"]
    other = client.post("/jobs", json={**body, "seed": 5}, headers={"x-stainless-retry-count": "1"})
    assert other.status_code == 201


def test_a_key_may_be_used_again_after_its_job_was_deleted(client: TestClient) -> None:
    body = job_body(client)
    job_id = client.post("/jobs", json=body, headers={"idempotency-key": "k"}).json()["id"]
    client.post(f"/jobs/{job_id}/cancel")
    client.delete(f"/jobs/{job_id}")
    assert client.post("/jobs", json=body, headers={"idempotency-key": "k"}).status_code == 201


def test_a_clone_starts_from_what_the_user_wrote(either_client: TestClient) -> None:
    body = job_body(either_client, name="original", optim={"max_steps": 5, "learning_rate": 1e-3}, tags=["x"])
    original = either_client.post("/jobs", json=body).json()
    overrides = {"name": "copy", "optim": {"max_steps": 7}, "student": "large", "teacher": "large"}
    response = either_client.post(f"/jobs/{original['id']}/clone", json=overrides)
    assert response.status_code == 201, response.text
    clone = response.json()
    assert clone["cloned_from"] == original["id"]
    assert clone["id"] != original["id"]
    assert (clone["name"], clone["tags"]) == ("copy", ["x"])
    assert (clone["spec"]["optim"]["max_steps"], clone["spec"]["optim"]["learning_rate"]) == (7, 1e-3)
    assert clone["spec"]["sampling"]["max_new_tokens"] == 16_384, "a default is chosen anew for the larger model"


def test_a_clone_takes_no_body_at_all_and_honours_the_key(client: TestClient) -> None:
    job_id = submit(client)
    first = client.post(f"/jobs/{job_id}/clone", headers={"idempotency-key": "c"})
    again = client.post(f"/jobs/{job_id}/clone", headers={"idempotency-key": "c"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = client.post(f"/jobs/{job_id}/clone", json={"seed": 3}, headers={"idempotency-key": "c"})
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_a_clone_replaces_data_whole_and_is_checked_anew(client: TestClient) -> None:
    job_id = submit(client)
    other = upload(client)
    assert client.post(f"/jobs/{job_id}/clone", json={"dataset": other}).json()["spec"]["dataset"] == other
    response = client.post(f"/jobs/{job_id}/clone", json={"mode": "opsd"})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "teacher"
    switched = client.post(f"/jobs/{job_id}/clone", json={"mode": "opsd", "teacher": None})
    assert (switched.status_code, switched.json()["mode"]) == (201, "opsd")
    assert client.post("/jobs/job_none/clone").status_code == 404


def test_the_owner_may_have_so_many_jobs_at_once(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_queued_jobs=2)
    ids = [submit(client), submit(client)]
    response = client.post("/jobs", json=job_body(client))
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "quota_exceeded"
    assert response.headers["x-should-retry"] == "false"
    client.post(f"/jobs/{ids[0]}/cancel")
    assert client.post("/jobs", json=job_body(client)).status_code == 201


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"studnet": "small"}, "studnet", "invalid_spec"),
        ({"mode": "opd", "teacher": None}, "teacher", "invalid_spec"),
        ({"optim": {"learning_rate": -1}}, "optim.learning_rate", "invalid_spec"),
        ({"loss": {"divergence": "jsd", "support": "top_k"}}, "loss.support", "invalid_spec"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_queued(
    client: TestClient, changes: dict[str, Any], param: str, code: str
) -> None:
    response = client.post("/jobs", json={**job_body(client), **changes})
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["errors"][0]["param"] == param
    assert num_jobs(client) == 0


def test_a_body_of_nothing_but_faults_has_a_short_answer(client: TestClient) -> None:
    body = {**job_body(client), **{f"samplin{i:05}": 1 for i in range(9_000)}}
    error = client.post("/jobs", json=body).json()["error"]
    assert len(error["errors"]) == 100
    assert error["message"].endswith("(and at least 99 more faults, the first 100 in errors)")


@pytest.mark.parametrize("integrations", ["[" + ",".join("1" * 400_000) + "]", "[" + ",".join(["{}"] * 300_000) + "]"])
def test_a_body_of_many_values_is_refused_at_once(client: TestClient, integrations: str) -> None:
    """Each would be a fault, and the faults of a megabyte would stop the event loop for seconds."""
    body = f'{{"model": "a", "training_file": "ds_1", "method": {{"type": "opd"}}, "integrations": {integrations}}}'
    started = time.process_time()
    answer = client.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    assert time.process_time() - started < 1.5
    assert answer.json()["error"]["message"] == "the body has more than 10000 fields and items"


def test_a_long_name_of_a_field_is_cut(client: TestClient) -> None:
    """It is also taken apart at its dots to find the client's name for it: 200,000 took 70 s."""
    method = {"type": "opd", "opd": {"optim": {"a" + ".a" * 200_000: 1}}}
    started = time.process_time()
    answer = client.post("/v1/fine_tuning/jobs", json={"model": "a", "training_file": "ds_1", "method": method})
    assert time.process_time() - started < 2
    assert answer.json()["error"]["param"].startswith("method.opd.optim.a.a.a")
    assert len(answer.content) < 2000


def test_the_first_of_many_wrong_values_in_a_query_are_reported(client: TestClient) -> None:
    answer = client.get("/jobs?" + "&".join(["status=x"] * 2000))
    assert answer.status_code == 422
    assert len(answer.json()["error"]["errors"]) == 100


def test_the_queue_position_counts_who_is_claimed_first(either_client: TestClient) -> None:
    low, first, second = (submit(either_client, priority=priority) for priority in (-1, 0, 0))
    urgent = submit(either_client, priority=10)
    elsewhere = submit(either_client, queue="other")
    positions = {job["id"]: job["queue_position"] for job in either_client.get("/jobs").json()["data"]}
    assert positions == {urgent: 1, first: 2, second: 3, low: 4, elsewhere: 1}
    set_job(either_client, urgent, status="running")
    assert either_client.get(f"/jobs/{low}").json()["queue_position"] == 3
    assert either_client.get(f"/jobs/{urgent}").json()["queue_position"] is None


def test_a_failed_job_says_why(client: TestClient) -> None:
    job_id = submit(client)
    failure = {"error_code": "out_of_memory", "error_message": "6 GiB", "error_retryable": False, "error_hint": "less"}
    set_job(client, job_id, status="failed", **failure)
    assert client.get(f"/jobs/{job_id}").json()["error"] == {
        "code": "out_of_memory",
        "message": "6 GiB",
        "retryable": False,
        "hint": "less",
    }


def test_a_submitted_job_rings_the_doorbell_of_its_queue(
    make_client: MakeClient, sqlite_url: str, redis_url: str
) -> None:
    client = make_client(sqlite_url, broker_url=redis_url)
    job_id = submit(client, queue="gpu-8")
    context_of(client).doorbell.close()
    with redis.Redis.from_url(redis_url) as broker:
        (message,) = broker.lrange("gpu-8", 0, -1)
    assert job_id in base64.b64decode(json.loads(message)["body"]).decode()
