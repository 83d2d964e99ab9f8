"""An owner's quota holds while uploads arrive, several at once among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.datasets.service import ArrivingBytes
from service.errors import QuotaError
from service.settings import Settings
from tests.environment import settings_from
from tests.service.conftest import MakeClient

JSONL = {"content-type": "application/jsonl"}
ROW = b'{"problem": "1+1=", "answer": "2"}\n'


def test_uploads_of_one_owner_share_the_room_and_give_it_back() -> None:
    arriving = ArrivingBytes(settings_from(Settings, {"TRD_MAX_STORED_BYTES": "100"}))
    with arriving.counted("ann", 40) as first, arriving.counted("bob", 0) as other:
        first(30)
        other(100)
        with arriving.counted("ann", 40) as second:
            second(30)
            with pytest.raises(QuotaError, match="100 bytes"):
                second(1)
        first(30)
    with arriving.counted("ann", 40) as third:
        third(60)
    assert not arriving._by_owner


@pytest.mark.parametrize("as_form", [False, True])
def test_an_upload_without_room_is_refused_before_it_is_checked(
    as_form: bool, make_client: MakeClient, sqlite_url: str
) -> None:
    client = make_client(sqlite_url, max_stored_bytes=10_000)
    # The last row is wrong, which only a reader of the whole file can tell.
    rows = ROW * 1_000 + b"{}\n"
    if as_form:
        response = client.post("/datasets", files={"file": ("rows.jsonl", rows)})
    else:
        response = client.post("/datasets", content=rows, headers=JSONL)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "quota_exceeded")
    assert client.get("/datasets").json()["data"] == []
    assert client.post("/datasets", content=ROW, headers=JSONL).status_code == 201


def test_a_repeated_request_finds_what_filled_the_quota(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_stored_bytes=len(ROW))
    first = client.post("/datasets", content=ROW, headers=JSONL).json()
    again = client.post("/datasets", content=ROW, headers={**JSONL, "x-stainless-retry-count": "1"})
    assert (again.status_code, again.json()) == (201, first)


def test_an_endless_upload_ends_at_the_quota(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_stored_bytes=10_000, max_upload_bytes=1_000_000)

    def pieces() -> Iterator[bytes]:
        for _ in range(1_000):
            yield ROW * 10

    response = client.post("/datasets", content=pieces(), headers=JSONL)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "quota_exceeded")
