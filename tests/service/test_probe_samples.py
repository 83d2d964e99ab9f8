"""Answers to fixed problems, by step, as the API shows them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from contract.tables import ProbeSample
from tests.service.records import database_of, submit


def add_probe_samples(client: TestClient, job_id: str) -> None:
    """Add two problems at three evaluations; the student learns the first one."""
    with database_of(client).write() as session:
        for step in (0, 32, 64):
            for position in (0, 1):
                row = ProbeSample(job_id=job_id, step=step, position=position, problem_id=f"p{position}")
                row.prompt, row.completion = "1 + 1 =", f"after {step} steps"
                row.correct, row.created_at = step > 0 and position == 0, datetime.now(UTC)
                session.add(row)


def test_samples_come_by_step_and_position(either_client: TestClient) -> None:
    job_id = submit(either_client)
    add_probe_samples(either_client, job_id)
    add_probe_samples(either_client, submit(either_client))
    page = either_client.get(f"/jobs/{job_id}/probe-samples").json()
    assert [row["id"] for row in page["data"]] == ["0:0", "0:1", "32:0", "32:1", "64:0", "64:1"]
    assert [row["correct"] for row in page["data"]] == [False, False, True, False, True, False]
    assert page["data"][2] | {"created_at": ""} == {
        "object": "probe_sample",
        "id": "32:0",
        "step": 32,
        "position": 0,
        "problem_id": "p0",
        "prompt": "1 + 1 =",
        "completion": "after 32 steps",
        "correct": True,
        "created_at": "",
    }


def test_they_are_paged_and_filtered(either_client: TestClient) -> None:
    job_id = submit(either_client)
    add_probe_samples(either_client, job_id)

    def ids(**params: str | int) -> tuple[list[str], bool]:
        page = either_client.get(f"/jobs/{job_id}/probe-samples", params=params).json()
        return [row["id"] for row in page["data"]], page["has_more"]

    assert ids(limit=3) == (["0:0", "0:1", "32:0"], True)
    assert ids(after="32:0") == (["32:1", "64:0", "64:1"], False)
    assert ids(step=64) == (["64:0", "64:1"], False)
    assert ids(step=64, after="64:0") == (["64:1"], False)
    assert ids(step=5) == ([], False)


@pytest.mark.parametrize("params", [{"after": "1"}, {"after": "a:b"}, {"step": -1}, {"limit": 0}])
def test_what_is_no_page_is_refused(client: TestClient, params: dict[str, str]) -> None:
    assert client.get(f"/jobs/{submit(client)}/probe-samples", params=params).status_code == 422
