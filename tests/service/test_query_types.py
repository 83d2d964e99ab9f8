"""What a query string may contain if the OpenAPI document asks for an integer."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.service.records import submit


@pytest.mark.parametrize("text", ["1.0", "0.0", "1_0", "1e0", "true", "null", "", "0x1", "+-1"])
def test_only_decimal_digits_are_an_integer(client: TestClient, text: str) -> None:
    job_id = submit(client)
    answer = client.get(f"/jobs/{job_id}/trajectories", params={"round": text})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "round"


@pytest.mark.parametrize("text", ["0", "+1", "007"])
def test_decimal_digits_are_read(client: TestClient, text: str) -> None:
    assert client.get(f"/jobs/{submit(client)}/trajectories", params={"round": text}).status_code == 200
