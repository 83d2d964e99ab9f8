"""Notices before a GPU hour is spent: in the dry run, on top of the job, in its events, and as refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from contract.tables import Dataset, Job
from service.datasets.repository import Size
from service.jobs.admission import data_notices
from tests.service.conftest import MakeClient
from tests.service.records import context_of, job_body, submit, upload
from tests.service.test_budgets import spec

TINY = Path(__file__).parents[2] / "testbed" / "models" / "tiny-student"
FOUND: list[dict[str, Any]] = [
    {"code": "unread_columns", "message": "column input is not read", "remedy": "map it", "count": 6, "example": "1 2"},
    {"code": "unread_choices", "message": "choices", "remedy": "use task choice", "tasks": ["math", "exact"]},
    {"code": "other", "message": "not for this task", "remedy": "x", "tasks": ["code"]},
]


def test_a_jobs_notices_are_those_of_its_dry_run(either_client: TestClient) -> None:
    body = job_body(either_client)
    previewed = either_client.post("/jobs?dry_run=true", json=body).json()["notices"]
    job = either_client.post("/jobs", json=body).json()
    assert [notice["code"] for notice in previewed] == ["budget_lowered"]
    assert previewed[0]["remedy"]
    assert job["notices"] == previewed
    assert either_client.get(f"/jobs/{job['id']}").json()["notices"] == previewed
    listed = {row["id"]: row for row in either_client.get("/jobs").json()["data"]}
    assert listed[job["id"]]["notices"] == previewed
    _, event = either_client.get(f"/jobs/{job['id']}/events").json()["data"]
    details = {"code": "budget_lowered", "remedy": previewed[0]["remedy"], "count": 4}
    assert (event["level"], event["message"]) == ("warn", previewed[0]["message"])
    assert event["data"] == {**details, "example": previewed[0]["example"]}


def test_a_job_without_notices_shows_none(client: TestClient) -> None:
    body = job_body(client, student="large", teacher="large")
    job = client.post("/jobs", json={**body, "strict": True})
    assert (job.status_code, job.json()["notices"]) == (201, [])
    with context_of(client).database.read() as session:
        stored = session.get(Job, job.json()["id"])
        assert stored is not None
        assert stored.notices is None


def test_a_strict_job_with_a_notice_is_refused(either_client: TestClient) -> None:
    body = job_body(either_client, strict=True)
    for path in ("/jobs?dry_run=true", "/jobs"):
        response = either_client.post(path, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (422, "strict_notices", "strict")
        (notice,) = error["errors"]
        assert (notice["code"], notice["count"]) == ("budget_lowered", 4)
        assert notice["message"] in error["message"]
    assert either_client.get("/jobs").json()["data"] == []


def test_a_clone_of_a_job_may_be_strict(client: TestClient) -> None:
    refused = client.post(f"/jobs/{submit(client)}/clone", json={"strict": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "strict_notices")


def test_notices_of_an_upload_stand_in_its_answer_and_on_top_of_its_jobs(either_client: TestClient) -> None:
    dataset = upload(either_client)
    with context_of(either_client).database.write() as session:
        row = session.get(Dataset, dataset)
        assert row is not None
        row.findings = {"notices": FOUND}
    shown = either_client.get(f"/datasets/{dataset}").json()["notices"]
    assert [(notice["code"], notice["count"]) for notice in shown] == [
        ("unread_columns", 6),
        ("unread_choices", 1),
        ("other", 1),
    ]
    body = job_body(either_client, dataset=dataset, student="large", teacher="large")
    expected = ["unread_columns", "unread_choices"]
    job = either_client.post("/jobs", json=body).json()
    assert [notice["code"] for notice in job["notices"]] == expected
    previewed = either_client.post("/jobs?dry_run=true", json=body).json()["notices"]
    assert previewed == job["notices"] == either_client.get(f"/jobs/{job['id']}").json()["notices"]
    refused = either_client.post("/jobs", json={**body, "strict": True}).json()["error"]
    assert [notice["code"] for notice in refused["errors"]] == expected
    assert either_client.post("/jobs", json={**body, "strict": True, "task": "exact"}).status_code == 422
    other_task = either_client.post("/jobs", json={**body, "task": "choice"}).json()
    assert [notice["code"] for notice in other_task["notices"]] == ["unread_columns"]


def test_notices_of_a_dataset_hold_for_its_tasks() -> None:
    sizes = {"ds_1": Size(40, True, FOUND), "ds_2": Size(4, True, FOUND[:1])}
    math = data_notices(spec(), sizes)
    assert [(notice.code, notice.count) for notice in math] == [("unread_columns", 6), ("unread_choices", 1)]
    assert [notice.code for notice in data_notices(spec(task="choice"), sizes)] == ["unread_columns"]
    both = data_notices(spec(task="choice", evaluation={"dataset": "ds_2"}), sizes)
    assert [notice.message for notice in both] == [
        "column input is not read",
        "evaluation.dataset: column input is not read",
    ]
    same = data_notices(spec(task="choice", evaluation={"dataset": "ds_1"}), sizes)
    assert len(same) == 1, "one file has its notices once"


def test_a_field_that_is_given_twice_is_refused(client: TestClient) -> None:
    body = b'{"mode": "trd", "optim": {"epochs": 2},\n "optim": {"batch_size": 4}}'
    for path in ("/jobs", "/jobs?dry_run=true", f"/jobs/{submit(client)}/clone", "/v1/fine_tuning/jobs"):
        error = client.post(path, content=body, headers={"content-type": "application/json"})
        assert error.status_code == (400 if path.startswith("/v1") else 422)
        message = error.json()["error"]["message"]
        assert "key 'optim' in line 2 is there already, in line 1; keep one" in message


def test_stop_tokens_that_differ_are_noticed_before_the_job_is_queued(
    make_client: MakeClient, sqlite_url: str, tmp_path: Path
) -> None:
    for name, eos in (("good", 1), ("odd", [1, 0])):
        shutil.copytree(TINY, tmp_path / name)
        (tmp_path / name / "generation_config.json").unlink()
        config = json.loads((TINY / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "eos_token_id": eos}))
    client = make_client(sqlite_url, models=f"{tmp_path}/*")
    body = job_body(client, student="good", teacher="good")

    def found(**changes: Any) -> list[str]:
        notices = client.post("/jobs?dry_run=true", json={**body, **changes}).json()["notices"]
        return [notice["message"].split("'s folder")[0] for notice in notices if notice["code"] == "stop_ids"]

    assert found() == []
    assert found(student="odd") == ["the files of the student"]
    assert found(teacher="odd") == ["the files of the teacher"]
    assert found(student="odd", teacher="odd") == ["the files of the student"]
    assert found(mode="opsd", student="odd", teacher=None) == ["the files of the student"]
