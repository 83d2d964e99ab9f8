"""JSON in which an object has a key twice is refused, with the key and both lines."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trd_data.unique_json import DuplicateKeyError, loads_unique

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@given(JSON)
def test_other_json_is_read_as_ever(value: Any) -> None:
    for indent in (None, 2):
        assert loads_unique(json.dumps(value, indent=indent)) == value


@pytest.mark.parametrize(
    ("text", "key", "line", "before"),
    [
        ('{"a": 1, "a": 1}', "a", 1, 1),
        ('{"a": 1,\n"b": [{"c": 1,\n"c": 2}]}', "c", 3, 2),
        ('{"a": {"a": 1}, "b": {"a": 2},\n "b": 1}', "b", 2, 1),
        ('[{}, {"x": "a: {,\\" x", "y": "x",\n"x": 0}]', "x", 2, 1),
        ('{"\\u0061": 1,\n\n"a": 2}', "a", 3, 1),
        ('{"": 1, "": 2}', "", 1, 1),
        ('{"a": 1, "b": {"z": 1, "z": 1}, "a": 2}', "z", 1, 1),
    ],
)
def test_a_key_that_is_there_twice_is_named(text: str, key: str, line: int, before: int) -> None:
    with pytest.raises(DuplicateKeyError) as caught:
        loads_unique(text)
    assert str(caught.value) == f"key {key!r} in line {line} is there already, in line {before}; keep one"


def test_a_large_object_takes_time_in_proportion() -> None:
    """Anybody with a key can send one of a megabyte."""
    keys = [f'"k{number}":\n1' for number in range(30_000)]
    started = time.process_time()
    with pytest.raises(DuplicateKeyError, match="'k29999' in line 30001 is there already, in line 30000"):
        loads_unique("{" + ",".join([*keys, keys[-1]]) + "}")
    assert time.process_time() - started < 1.5


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', '{"a": Infinity}', "[-1e400]", "[1] 2"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        loads_unique(text)
