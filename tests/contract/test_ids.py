from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from contract.ids import JOB_PREFIX, first_id, new_id

TIMES = st.datetimes(datetime(1971, 1, 1), datetime(2300, 1, 1), timezones=st.just(UTC))


def test_an_id_names_its_kind_and_is_never_the_same() -> None:
    ids = {new_id(JOB_PREFIX) for _ in range(1000)}
    assert len(ids) == 1000
    assert all(i.startswith("job_") and len(i) == 30 for i in ids)


@given(TIMES, st.timedeltas(timedelta(milliseconds=2), timedelta(days=1000)))
def test_ids_sort_by_time(at: datetime, later: timedelta) -> None:
    """Two milliseconds: seconds as a float may fall just short of a whole one."""
    assert new_id("x_", now_seconds=at.timestamp()) < new_id("x_", now_seconds=(at + later).timestamp())


@given(TIMES)
def test_first_id_is_not_after_any_id_of_its_time(at: datetime) -> None:
    assert first_id("x_", at) <= new_id("x_", now_seconds=at.timestamp())
    earlier = at.replace(microsecond=at.microsecond // 1000 * 1000) - timedelta(microseconds=500)
    assert first_id("x_", at) > new_id("x_", now_seconds=earlier.timestamp())
