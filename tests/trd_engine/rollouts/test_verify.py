"""Verdicts on many completions, while others are sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.tiny_runs import spec, write_data
from trd_engine.config import parse_config
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.rollouts.verify import PART, Verifier
from trd_engine.runtime.errors import SpecError, StopRequested
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.exact import ExactTask
from trd_engine.tasks.protocol import Task
from trd_engine.training.loop import distil
from trd_engine.types import Completion, Problem, Verdict

PAIRS = [(Problem(str(i), "?", str(i)), f"\\boxed{{{i // 2 * 2}}}") for i in range(3 * PART + 5)]


@pytest.fixture
def judge() -> Iterator[Callable[[Task], Verifier]]:
    made: list[Verifier] = []

    def make(task: Task) -> Verifier:
        made.append(Verifier(task))
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


def test_verdicts_are_in_the_order_of_the_completions(tmp_path: Path, judge: Callable[[Task], Verifier]) -> None:
    verifier = judge(ExactTask())
    for problem, text in reversed(PAIRS[PART:]):
        verifier.begin(problem, text)
    with Reporter(tmp_path) as reporter:
        verdicts = verifier.verdicts(PAIRS, reporter)
        assert verifier.verdicts([], reporter) == []
    assert [v.correct for v in verdicts] == [i % 2 == 0 for i in range(len(PAIRS))]


class CountingTask(ExactTask):
    """Knows how many completions it was given, and of how many at once at most."""

    num_verified = 0
    largest_part = 0

    def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        self.num_verified += len(pairs)
        self.largest_part = max(self.largest_part, len(pairs))
        return super().verify_many(pairs)


def test_equal_completions_are_judged_once(tmp_path: Path, judge: Callable[[Task], Verifier]) -> None:
    task = CountingTask()
    verifier = judge(task)
    with Reporter(tmp_path) as reporter:
        first = verifier.verdicts([*PAIRS, *PAIRS], reporter)
        assert (task.num_verified, task.largest_part <= PART) == (len(PAIRS), True)
        assert verifier.verdicts(PAIRS, reporter) == first[: len(PAIRS)] == first[len(PAIRS) :]
    assert task.num_verified == 2 * len(PAIRS)  # nothing is kept between two calls


def test_a_stop_is_obeyed_before_all_are_verified(tmp_path: Path, judge: Callable[[Task], Verifier]) -> None:
    is_stopped = threading.Event()

    class SlowTask(CountingTask):
        def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
            verdicts = super().verify_many(pairs)
            if self.num_verified > PART:
                is_stopped.set()
                forgotten.wait(30)
            return verdicts

    forgotten, task = threading.Event(), SlowTask()
    verifier = judge(task)
    with Reporter(tmp_path, stop=is_stopped.is_set) as reporter, pytest.raises(StopRequested):
        verifier.verdicts(PAIRS, reporter)
    forgotten.set()
    verifier.close()
    assert PART < task.num_verified <= 2 * PART


class CrashingTask(ExactTask):
    """Fails on one completion, as code of a library may on any text."""

    def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        if any(problem.id == "5" for problem, _ in pairs):
            raise KeyError("ſ")
        return super().verify_many(pairs)


def test_a_crash_of_the_verifier_is_one_verdict(tmp_path: Path, judge: Callable[[Task], Verifier]) -> None:
    with Reporter(tmp_path) as reporter:
        verdicts = judge(CrashingTask()).verdicts(PAIRS, reporter)
    assert verdicts[5] == Verdict(False, "error: the verifier crashed: KeyError: 'ſ'", "error")
    assert [v.correct for v in verdicts] == [i % 2 == 0 for i in range(len(PAIRS))]


def test_a_verifier_that_refuses_ends_the_run(tmp_path: Path, judge: Callable[[Task], Verifier]) -> None:
    class RefusingTask(CountingTask):
        def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
            super().verify_many(pairs)
            raise SpecError("not on this machine")

    task = RefusingTask()
    with Reporter(tmp_path) as reporter, pytest.raises(SpecError):
        judge(task).verdicts(PAIRS, reporter)
    assert task.num_verified <= PART  # the others are not tried


def test_a_completion_is_judged_while_the_next_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other: the sampler for the start of the first verdict, and this for a later completion."""
    timeline: list[str] = []
    is_judging, is_sampled = threading.Event(), threading.Event()

    class SlowTask(ExactTask):
        def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
            if is_judging.is_set():
                return super().verify_many(pairs)
            timeline.append("judging begins")
            is_judging.set()
            assert is_sampled.wait(60)
            timeline.append("judging ends")
            return super().verify_many(pairs)

    generate = TransformersGenerator.generate

    def slow_generate(generator: TransformersGenerator, *arguments: Any, **options: Any) -> list[Completion]:
        begin = options.pop("on_completion", None)

        def on_completion(number: int, completion: Completion) -> None:
            if not is_judging.is_set():
                timeline.append("one sampled")
                begin(number, completion)
                assert is_judging.wait(60)
                return
            begin(number, completion)
            if not is_sampled.is_set():
                timeline.append("another sampled")
                is_sampled.set()

        return generate(generator, *arguments, on_completion=on_completion if begin else None, **options)

    document = spec(write_data(tmp_path, train=8), optim={"batch_size": 8}, evaluation={"holdout": 0.0})
    document["sampling"] |= {"max_new_tokens": 8}
    distil(parse_config(document), tmp_path / "plain")
    monkeypatch.setattr(TransformersGenerator, "generate", slow_generate)
    distil(parse_config(document), tmp_path / "slow", task=SlowTask())
    assert timeline == ["one sampled", "judging begins", "another sampled", "judging ends"]
    for name in ("rounds/0000/trajectories.jsonl", "checkpoints/step-00000001/model/model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "slow" / name).read_bytes()
