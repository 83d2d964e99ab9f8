"""What a run says while it goes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.trd_engine.tiny_runs import events
from trd_engine.runtime.events import Reporter


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


def test_the_steps_of_a_stretch_of_training_are_counted_from_where_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a checkpoint, an evaluation or a resume: 50 steps were taken before."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Reporter(tmp_path, stop=lambda: False) as reporter:
        reporter.eta.plan("training", 50)
        reporter.phase("training", round_index=0, num_rounds=1, step=50, num_steps=100)
        now[0] = 2.0
        reporter.report_progress(51, 100, "steps")
        assert reporter.eta.remaining_seconds() == 49 * 2.0
