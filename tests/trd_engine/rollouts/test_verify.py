"""Verdicts on many completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from trd_engine.rollouts.verify import PART, verify_all
from trd_engine.runtime.errors import SpecError, StopRequested
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.exact import ExactTask
from trd_engine.types import Problem, Verdict

PAIRS = [(Problem(str(i), "?", str(i)), f"\\boxed{{{i // 2 * 2}}}") for i in range(3 * PART + 5)]


class CountingTask(ExactTask):
    """Knows how many completions it was given."""

    num_verified = 0

    def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        self.num_verified += len(pairs)
        return super().verify_many(pairs)


def test_verdicts_are_in_the_order_of_the_completions(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        verdicts = verify_all(PAIRS, ExactTask(), reporter)
        assert verify_all([], ExactTask(), reporter) == []
    assert [v.correct for v in verdicts] == [i % 2 == 0 for i in range(len(PAIRS))]


def test_a_stop_is_obeyed_before_all_are_verified(tmp_path: Path) -> None:
    task = CountingTask()
    with Reporter(tmp_path, stop=lambda: task.num_verified > PART) as reporter, pytest.raises(StopRequested):
        verify_all(PAIRS, task, reporter)
    assert task.num_verified == 2 * PART


class CrashingTask(ExactTask):
    """Fails on one completion, as code of a library may on any text."""

    def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        if any(problem.id == "5" for problem, _ in pairs):
            raise KeyError("ſ")
        return super().verify_many(pairs)


def test_a_crash_of_the_verifier_is_one_verdict(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        verdicts = verify_all(PAIRS, CrashingTask(), reporter)
    assert verdicts[5] == Verdict(False, "error: the verifier crashed: KeyError: 'ſ'", "error")
    assert [v.correct for v in verdicts] == [i % 2 == 0 for i in range(len(PAIRS))]


def test_a_verifier_that_refuses_ends_the_run(tmp_path: Path) -> None:
    class RefusingTask(ExactTask):
        def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
            raise SpecError("not on this machine")

    with Reporter(tmp_path) as reporter, pytest.raises(SpecError):
        verify_all(PAIRS, RefusingTask(), reporter)
