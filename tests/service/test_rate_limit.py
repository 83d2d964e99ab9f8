from __future__ import annotations

import pytest

from service import rate_limit
from service.rate_limit import RateLimits
from tests.service.conftest import AUTHORIZED, MakeClient


def test_a_bucket_empties_and_fills_evenly() -> None:
    limits = RateLimits(per_minute=60)
    assert [limits.take("k", now=0.0) for _ in range(60)] == list(range(59, -1, -1))
    assert limits.take("k", now=0.0) == -1
    assert limits.take("k", now=0.5) == pytest.approx(-0.5)
    assert limits.take("k", now=1.0) == pytest.approx(0)
    assert limits.take("other", now=1.0) == 59
    assert limits.take("k", now=1000.0) == 59, "it never holds more than a minute's worth"


def test_forgetting_a_full_bucket_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 10)
    limits = RateLimits(per_minute=60)
    for _ in range(30):
        limits.take("busy", now=100.0)
    for number in range(20):
        limits.take(f"idle-{number}", now=0.0)
    limits.take("one more", now=101.0)
    assert limits.take("busy", now=101.0) == 30


def test_every_answer_says_how_much_is_left(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_requests_per_minute=3)
    left = [client.get("/jobs").headers["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]
    refused = client.get("/jobs")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert refused.headers["x-request-id"]
    assert "x-should-retry" not in refused.headers, "later the same request is answered"


def test_a_probe_is_never_limited_and_a_wrong_key_takes_nothing(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_requests_per_minute=2)
    for _ in range(5):
        assert client.get("/healthz", headers={"authorization": ""}).status_code == 200
        assert client.get("/jobs", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/jobs", headers=AUTHORIZED).status_code == 200
