from __future__ import annotations

import pytest

from service.checkpoints.ranges import requested_range
from service.errors import RangeError

ETAG = '"abc"'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", range(0, 1)),
        ("bytes=2-4", range(2, 5)),
        ("bytes=7-", range(7, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-30", range(0, 10)),
        ("bytes=5-999", range(5, 10)),
        ("bytes= 1-2", range(1, 3)),
        ("bytes=0-1,3-4", None),
        ("bytes=4-2", None),
        ("bytes=-", None),
        ("lines=0-1", None),
        ("bytes=x-y", None),
        ("", None),
    ],
)
def test_one_range_is_understood_and_the_rest_is_the_whole_file(value: str, expected: range | None) -> None:
    assert requested_range({"range": value}, 10, ETAG) == expected


@pytest.mark.parametrize("value", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused_with_the_size(value: str) -> None:
    with pytest.raises(RangeError) as caught:
        requested_range({"range": value}, 10, ETAG)
    assert caught.value.headers == {"content-range": "bytes */10"}


def test_a_range_of_another_version_is_the_whole_file() -> None:
    assert requested_range({"range": "bytes=1-2", "if-range": ETAG}, 10, ETAG) == range(1, 3)
    assert requested_range({"range": "bytes=1-2", "if-range": '"old"'}, 10, ETAG) is None
    assert requested_range({"range": "bytes=1-2", "if-range": f"W/{ETAG}"}, 10, ETAG) is None
