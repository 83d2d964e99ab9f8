"""Specs, sparklines, differences, durations: text in, text out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.control import strip_control_codes

from client.cli.chart import sparkline
from client.cli.compare import spec_differences
from client.cli.output import duration, number, size
from client.cli.spec_file import flattened, merged, parse_overrides, parse_yaml
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
        ("0x1f", "0x1f"),
        ("e3", "e3"),
        ("{a: [1, x]}", {"a": [1, "x"]}),
        ('"1e-3"', "1e-3"),
    ],
)
def test_yaml_means_what_json_users_expect(text: str, value: object) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


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
