"""What a run says while it goes."""

from __future__ import annotations

from pathlib import Path

from tests.trd_engine.tiny_runs import events
from trd_engine.reporter import Reporter


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        reporter.notice("info", "first", "whole")
    with (tmp_path / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"type": "notice", "co')
    with Reporter(tmp_path) as reporter:
        reporter.notice("info", "second", "after it")
    assert [event["code"] for event in events(tmp_path, "notice")] == ["first", "second"]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        reporter.metrics(1, 0, {"loss": float("nan"), "grad_norm": float("inf")})
    assert events(tmp_path, "metrics")[0]["values"] == {"loss": None, "grad_norm": None}
