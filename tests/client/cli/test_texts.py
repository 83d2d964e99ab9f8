"""Specs, sparklines, differences, durations: text in, text out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.control import strip_control_codes

from client.cli.chart import sparkline
from client.cli.compare import spec_differences
from client.cli.exit_codes import MisusedError
from client.cli.output import duration, number, size
from client.cli.spec_file import flattened, merged, parse_overrides, parse_yaml, read_spec
from client.cli.trajectories import side_by_side
from client.errors import TrdError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E+2", 500.0),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("7", 7),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-11-24", "2026-11-24"),
        ("1_000", "1_000"),
        ("0x1f", 31),
        ("0o17", 15),
        ("08", 8),
        ("010", 10),
        ("-010", -10),
        ("+7", 7),
        ("0b1", "0b1"),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("12e03", 12000.0),
        ("1e3", 1000.0),
        ("1.", 1.0),
        ("yes", "yes"),
        ("off", "off"),
        ("N", "N"),
        ("y", "y"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("=", "="),
        (".inf", ".inf"),
        ("e3", "e3"),
        ("{a: [1, x]}", {"a": [1, "x"]}),
        ('"1e-3"', "1e-3"),
    ],
)
def test_yaml_means_what_json_users_expect(text: str, value: object) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


DUPLICATES = {
    "at the top": ("seed: 1\nmode: trd\nseed: 2\n", "seed", 3, 1),
    "a block": ("optim:\n  epochs: 1\nmode: trd\noptim:\n  batch_size: 2\n", "optim", 4, 1),
    "within a block": ("optim:\n  epochs: 1\n  epochs: 1\n", "epochs", 3, 2),
    "in braces": ("lora: {rank: 1, alpha: 2, rank: 3}\n", "rank", 1, 1),
    "in a list": ("tags:\n- {a: 1,\n   a: 2}\n", "a", 3, 2),
    "quoted and plain": ("seed: 1\n'seed': 2\n", "seed", 2, 1),
    "null and a value": ("teacher: null\nteacher: x\n", "teacher", 2, 1),
    "three times": ("a: 1\na: 1\na: 1\n", "a", 2, 1),
    "of an anchor": ("a: &x {b: 1, b: 2}\nc: *x\n", "b", 1, 1),
    "deep": ("a:\n  b:\n    c:\n      d: 1\n      d: 1\n", "d", 5, 4),
}


@pytest.mark.parametrize(("text", "key", "line", "before"), DUPLICATES.values(), ids=DUPLICATES)
def test_a_key_that_is_there_twice_is_an_error(text: str, key: str, line: int, before: int, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TrdError, match=rf"line {line}, column \d+: key '{key}' is there already, in line {before}"):
        read_spec(path)


def test_merge_keys_may_be_overridden() -> None:
    assert parse_yaml("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  b: 3\n")["d"] == {"b": 3, "c": 2}
    assert parse_yaml("a: &x {b: 1}\ne: &y {b: 2}\nd: {<<: [*x, *y], f: 1}")["d"] == {"b": 1, "f": 1}


def test_a_key_that_is_there_twice_in_json_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text('{"mode": "trd",\n "optim": {"epochs": 1},\n "optim": {}}', encoding="utf-8")
    with pytest.raises(TrdError, match=r"job.json: key 'optim' in line 3 is there already, in line 2; keep one"):
        read_spec(path)
    with pytest.raises(MisusedError, match="key 'a' is there already"):
        parse_overrides(["optim={a: 1, a: 2}"])


def test_no_yaml_makes_an_object() -> None:
    import yaml

    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


def test_overrides_nest_and_merge() -> None:
    overrides = parse_overrides(["optim.learning_rate=1e-4", "optim.epochs=2", "lora=null", "metadata.a=b=c", "name="])
    assert overrides == {
        "optim": {"learning_rate": 1e-4, "epochs": 2},
        "lora": None,
        "metadata": {"a": "b=c"},
        "name": None,
    }
    base = {"optim": {"epochs": 1, "batch_size": 4}, "lora": {"rank": 1}, "mode": "trd"}
    assert merged(base, {"optim": {"epochs": 2}, "lora": None}) == {
        "optim": {"epochs": 2, "batch_size": 4},
        "lora": None,
        "mode": "trd",
    }
    assert base["lora"] == {"rank": 1}
    for wrong in ("optim", "=1", "a..b=1", "a=[}"):
        with pytest.raises(TrdError):
            parse_overrides([wrong])


def test_specs_are_compared_by_path() -> None:
    one = {"name": "a", "optim": {"epochs": 1, "betas": [1, 2]}, "lora": {"rank": 4}, "metadata": {}}
    other = {"name": "b", "optim": {"epochs": 2, "betas": [1, 2]}, "lora": None, "metadata": {}}
    assert flattened(one)["optim.betas"] == [1, 2]
    assert spec_differences(one, other) == {"optim.epochs": [1, 2], "lora.rank": [4, None]}


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 10, ""),
        ([None, float("nan")], 10, ""),
        ([1.0], 10, "▅"),
        ([0.0, None, 1.0], 10, "▁ █"),
        ([float(i) for i in range(16)], 8, "▁▂▃▄▅▆▇█"),
        ([0.0, 0.0, 8.0, 8.0], 2, "▁█"),
    ],
)
def test_sparklines(values: list[float | None], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


@given(st.lists(st.none() | st.floats(), max_size=300), st.integers(1, 50))
def test_a_sparkline_fits_whatever_comes(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width)) <= width


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_difference_keeps_both_texts(left: str, right: str) -> None:
    one, other = side_by_side(left, right)
    assert (one.plain, other.plain) == (strip_control_codes(left), strip_control_codes(right))


def test_a_difference_is_coloured_where_it_is() -> None:
    left, right = side_by_side("5*3 is 16, so 16", "5*3 is 15, so 15")
    assert [left.plain[span.start : span.end] for span in left.spans if span.style == "red"] == ["16", "16"]
    assert [right.plain[span.start : span.end] for span in right.spans if span.style == "green"] == ["15", "15"]


def test_figures_for_people() -> None:
    assert [duration(n) for n in (-1, 59.4, 185, 7620, 273_600)] == [
        "0 s",
        "59 s",
        "3 min 05 s",
        "2 h 07 min",
        "3 d 4 h",
    ]
    assert [size(n) for n in (999, 3_400_000, 2.5e12, 7e15)] == ["999 B", "3.4 MB", "2.5 TB", "7000.0 TB"]
    assert [number(n) for n in (None, 0.123456, 12345.6)] == ["—", "0.1235", "1.235e+04"]
