"""Pointing a person's open tab at a place: what is offered, to whom, and what is said if nobody takes it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from contract.tables import OfferedPlace
from tests.service.records import add_trajectory, database_of, submit
from tests.service.test_access import new_key
from tests.service.test_sign_in import ORIGIN, csrf_token, signed_in


def take_one(tab: TestClient) -> str | None:
    """Ask like a tab's script until a place waits for it."""
    headers = {"accept": "application/json"}
    for _ in range(200):
        if tab.get("/ui/view", headers=headers).json()["is_waiting"]:
            taken = tab.post("/ui/view/take", headers={**headers, **csrf_token(tab), **ORIGIN})
            path: str | None = taken.json()["path"]
            return path
    return None


def test_one_open_tab_of_the_owner_takes_the_place(either_client: TestClient) -> None:
    job_id = submit(either_client)
    add_trajectory(either_client, job_id, 3)
    spot = {"side": "refined", "token": 4, "text": "1 is"}
    body = {"job_id": job_id, "trajectory_id": "0:3", **spot, "wait_seconds": 20}
    other = new_key(either_client, "ann", "read")
    stranger = signed_in(either_client, other["authorization"].removeprefix("Bearer "))
    tabs = [signed_in(either_client) for _ in range(3)]
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(either_client.post, "/view", json=body)
        taken = [path for path in threads.map(take_one, tabs) if path is not None]
        answer = asked.result().json()
    path = f"/ui/jobs/{job_id}/trajectories/0:3#token=refined:4&text=1+is"
    assert taken == [path]
    assert (answer["path"], answer["is_opened"]) == (path, True)
    assert not stranger.get("/ui/view", headers={"accept": "application/json"}).json()["is_waiting"]


def test_without_an_open_tab_the_answer_is_the_link(client: TestClient) -> None:
    job_id = submit(client)
    for wait_seconds, message in ((0.3, "open the path yourself"), (0, "Open the path")):
        body = {"job_id": job_id, "page": "spec", "wait_seconds": wait_seconds}
        answer = client.post("/view", json=body).json()
        assert (answer["path"], answer["is_opened"]) == (f"/ui/jobs/{job_id}/spec", False)
        assert message in answer["message"]
    with database_of(client).read() as session:
        assert session.scalars(select(OfferedPlace)).all() == [], "a place that nobody took is withdrawn"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"token": 1}, "token"),
        ({"trajectory_id": "0:1", "token": 5}, "token"),
        ({"trajectory_id": "0:2", "side": "refined"}, "side"),
        ({"trajectory_id": "0:1", "text": "not there"}, "text"),
        ({"trajectory_id": "0:1/../../.."}, "trajectory_id"),
        ({"page": "//evil.test"}, "page"),
        ({"path": "https://evil.test"}, "path"),
        ({"text": "a\nb"}, "text"),
        ({"wait_seconds": 21}, "wait_seconds"),
    ],
)
def test_a_place_that_is_not_there_is_refused(client: TestClient, fields: dict[str, Any], param: str) -> None:
    job_id = submit(client)
    add_trajectory(client, job_id, 1)
    add_trajectory(client, job_id, 2, verdicts=(False, None))
    refused = client.post("/view", json={"job_id": job_id, "wait_seconds": 0, **fields})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param), refused.text


def test_only_the_owners_jobs_are_places(client: TestClient) -> None:
    job_id = submit(client)
    other = new_key(client, "ann", "submit")
    for body, headers in (
        ({"job_id": job_id}, other),
        ({"job_id": "job_none"}, {}),
        ({"job_id": job_id, "trajectory_id": "7:7"}, {}),
    ):
        assert client.post("/view", json=body, headers=headers).status_code == 404
    assert client.post("/view", json={"job_id": job_id}, headers={"authorization": ""}).status_code == 401
    tab = signed_in(client)
    assert tab.post("/ui/view/take", headers=ORIGIN).json()["error"]["code"] == "csrf_failed"
    assert signed_in(client).get("/ui/jobs/" + job_id).text.count('data-follows="yes"') == 1
    assert "data-follows" not in tab.get("/ui/new").text, "what was typed there would be lost"
