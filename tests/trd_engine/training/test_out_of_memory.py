"""A pass for which the memory does not suffice is made in smaller ones, with the same result.

Memory is scripted: the pass fails as PyTorch's does if it reads more tokens than a limit.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.trd_engine.tiny_runs import events, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.distillation import sequences
from trd_engine.distillation.batching import MicroBatch, PassTokens
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import PassesTooLargeError, PassTooLargeError
from trd_engine.training import setup, step
from trd_engine.training.loop import distil


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=16, heldout=4)


def limit_memory(monkeypatch: pytest.MonkeyPatch, max_tokens: int, kind: type[Exception], text: str) -> None:
    enough = step.score

    def score(models: Any, batch: MicroBatch, *arguments: Any, **options: Any) -> Any:
        found = enough(models, batch, *arguments, **options)
        if batch.num_teacher_tokens > max_tokens:
            raise kind(text)
        return found

    monkeypatch.setattr(step, "score", score)


def run(data: Path, out_dir: Path, **optim: Any) -> list[float]:
    document = spec(data, lora={"rank": 4, "alpha": 8, "dropout": 0.2}, evaluation={"holdout": 0})
    document |= {"optim": {"learning_rate": 1e-3, "batch_size": 8, **optim}, "diagnosis": {"num_trajectories": 0}}
    distil(parse_config(document), out_dir)
    return metric(out_dir, "loss")


@pytest.mark.parametrize(
    ("kind", "text"),
    [(torch.OutOfMemoryError, "CUDA out of memory"), (RuntimeError, "DefaultCPUAllocator: can't allocate memory")],
)
def test_smaller_passes_give_the_run_that_began_with_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], text: str
) -> None:
    """Dropout included: the pass that is repeated draws the same masks as one that was small from the start."""
    limit_memory(monkeypatch, 250, kind, text)
    halved = run(data, tmp_path / "halved")
    notices = [event["message"] for event in events(tmp_path / "halved", "notice") if event["code"] == "passes_halved"]
    assert notices
    assert notices[0].startswith("the memory ran out in a pass over 8 sequences, ")
    numbers = [int(word) for word in notices[-1].partition("at most ")[2].split() if word.isdigit()]
    most = PassTokens(*numbers)
    (*_, last) = (e for e in events(tmp_path / "halved", "notice") if e["code"] == "passes_halved")
    assert last["data"]["pass_tokens"] == [most.student, most.teacher], "a worker's next attempt begins with them"
    assert most.student < most.teacher <= 250
    monkeypatch.setattr(setup, "pass_tokens", lambda *_: most)
    assert run(data, tmp_path / "small") == halved


def test_a_single_sequence_that_does_not_fit_ends_the_run_with_what_to_lower(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 20, torch.OutOfMemoryError, "CUDA out of memory")
    with pytest.raises(
        PassTooLargeError, match=r"passes have one sequence each, .*: lower refine\.max_new_tokens"
    ) as found:
        run(data, tmp_path)
    assert found.value.code == "out_of_memory"


def test_the_error_says_what_has_fitted_before(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enough, largest = step.score, [0, 0]

    def score(models: Any, batch: MicroBatch, *arguments: Any, **options: Any) -> Any:
        if not any(largest):
            largest[:] = [batch.num_student_tokens, batch.num_teacher_tokens]
            return enough(models, batch, *arguments, **options)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "score", score)
    with pytest.raises(PassTooLargeError) as found:
        run(data, tmp_path)
    text = "sequences of up to {} tokens for the student and {} for the teacher, prompts included, have fitted: lower"
    assert text.format(*largest) in str(found.value)


def test_other_errors_are_not_taken_for_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, 20, RuntimeError, "shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(data, tmp_path)


def test_several_processes_end_with_the_numbers_for_the_next_attempt() -> None:
    """`test_real_engine` makes that attempt. Passes of one sequence end the job."""

    def batch(*positions: int) -> Any:
        return SimpleNamespace(positions=positions, num_student_tokens=90, num_teacher_tokens=121)

    batcher = sequences.Batcher(None, None, PassTokens.of_both(128), torch.device("cpu"), World(0, 2))  # type: ignore[arg-type]
    with pytest.raises(PassesTooLargeError, match=r"out; max_pass_tokens = \[45, 60\]") as found:
        batcher.with_smaller_passes([batch(0, 1), batch(2)], PassTooLargeError("out"), PassTokens(0, 0))
    assert (found.value.code, found.value.pass_tokens) == ("passes_too_large", (45, 60))
    assert PassTokens(16, 80).at_most(found.value.pass_tokens) == PassTokens(16, 60)
    with pytest.raises(PassTooLargeError, match="one of fewer tokens may fit: lower") as alone:
        batcher.with_smaller_passes([batch(0), batch(1)], PassTooLargeError("out"), PassTokens(0, 0))
    assert alone.value.code == "out_of_memory"
