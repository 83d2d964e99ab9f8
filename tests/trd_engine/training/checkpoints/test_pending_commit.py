"""A checkpoint is hashed and committed while the run continues. It counts only once it is complete."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.tiny_runs import events, metric, spec, until, write_data
from trd_engine.config import RunConfig, parse_config
from trd_engine.runtime.errors import StopRequested
from trd_engine.training import loop, session
from trd_engine.training.checkpoints import checkpoint
from trd_engine.training.checkpoints.checkpoint import checkpoint_draft, checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest
from trd_engine.training.loop import distil
from trd_engine.training.session import Session

NUM_STEPS = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Three steps on one round, of which each is saved and the newest is kept."""
    data = write_data(tmp_path_factory.mktemp("data"), train=24)
    changes: dict[str, Any] = {"mode": "opd", "loss": {}, "evaluation": {"holdout": 0.0}}
    changes |= {"diagnosis": {"num_trajectories": 0}, "checkpoints": {"every_steps": 1, "keep": 1}}
    changes["sampling"] = {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 8}
    return parse_config(spec(data, **changes, optim={"learning_rate": 1e-3, "batch_size": 8}))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The session of the run, once it is open."""
    found, open_session = list[Session](), loop.open_session

    def kept(*arguments: Any, **options: Any) -> Session:
        found.append(open_session(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(loop, "open_session", kept)
    return found


def before_hashing(monkeypatch: pytest.MonkeyPatch, step: int, wait: Callable[[], None]) -> None:
    """Call `wait` in the thread that is about to hash the checkpoint of `step`."""
    write_manifest = checkpoint.write_manifest

    def late(folder: Path, **facts: Any) -> dict[str, Any]:
        if facts["step"] == step:
            wait()
        return write_manifest(folder, **facts)

    monkeypatch.setattr(checkpoint, "write_manifest", late)


def fail() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def test_the_next_step_is_taken_while_a_checkpoint_is_hashed(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pending one has no manifest and no event, the one before is not removed, and the next one waits for it."""
    seen = []

    def look() -> None:
        until(lambda: len(metric(tmp_path, "loss")) == 2)
        seen.append(([event["step"] for event in events(tmp_path, "checkpoint")], checkpoints(tmp_path)))

    before_hashing(monkeypatch, 1, look)
    distil(config, tmp_path, prune_checkpoints=True)
    assert seen == [([0], [checkpoint_draft(tmp_path, 1).name, checkpoint_folder(tmp_path, 0).name])]
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [event["step"] for event in events(tmp_path, "checkpoint")] == [0, 1, 2, NUM_STEPS]
    assert [json.loads(line)["type"] for line in lines[-2:]] == ["checkpoint", "finished"]
    assert checkpoints(tmp_path) == [checkpoint_folder(tmp_path, NUM_STEPS).name]
    verify_manifest(checkpoint_folder(tmp_path, NUM_STEPS))


def test_a_checkpoint_that_cannot_be_hashed_ends_the_run_at_the_next_boundary(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Session]
) -> None:
    """With its own error, and without what it has written; no event names it."""

    def wait_for_failure(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and event["step"] == 2:
            until(opened[0].saver.has_failed)

    before_hashing(monkeypatch, 1, fail)
    with pytest.raises(OSError, match="No space left"):
        distil(config, tmp_path, on_event=wait_for_failure)
    assert len(metric(tmp_path, "loss")) == 2
    assert [event["step"] for event in events(tmp_path, "checkpoint")] == [0]
    assert checkpoints(tmp_path) == [checkpoint_folder(tmp_path, 0).name]


def test_a_checkpoint_that_cannot_be_hashed_ends_a_collection(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Session]
) -> None:
    """The next checkpoint may be due hours later."""

    def is_sampling() -> bool:
        return [(e["phase"], e["round"]) for e in events(tmp_path, "phase")][-1] == ("rollout", 1)

    def wait_for_failure(event: dict[str, Any]) -> None:
        if event["type"] == "phase" and is_sampling():
            until(opened[0].saver.has_failed)

    def fail_later() -> None:
        until(is_sampling)
        fail()

    before_hashing(monkeypatch, 1, fail_later)
    with pytest.raises(OSError, match="No space left"):
        distil(config.model_copy(update={"rounds": 2}), tmp_path, on_event=wait_for_failure)
    assert [event["round"] for event in events(tmp_path, "trajectories")] == [0]
    assert checkpoints(tmp_path) == [checkpoint_folder(tmp_path, 0).name]


def test_a_run_that_fails_completes_the_checkpoint_before(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own error is reported."""
    optimizer_step, failed = session.optimizer_step, list[int]()

    def fail_once_saved(*arguments: Any, **options: Any) -> dict[str, float]:
        if checkpoint_draft(tmp_path, 1).exists():
            failed.append(2)
            raise ZeroDivisionError
        return optimizer_step(*arguments, **options)

    before_hashing(monkeypatch, 1, lambda: until(lambda: failed == [2]))
    monkeypatch.setattr(session, "optimizer_step", fail_once_saved)
    with pytest.raises(ZeroDivisionError):
        distil(config, tmp_path)
    assert verify_manifest(checkpoint_folder(tmp_path, 1))["step"] == 1
    assert [event["step"] for event in events(tmp_path, "checkpoint")] == [0, 1]


@pytest.mark.parametrize("is_full", [False, True])
def test_a_stop_frees_the_devices_and_waits_for_the_pending_checkpoint(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Session], is_full: bool
) -> None:
    """What fails then fails the run: it would be resumed from an older checkpoint than the stop promises."""

    def wait() -> None:
        until(lambda: opened[0].is_closed)
        if is_full:
            fail()

    def stop() -> bool:
        return bool(opened) and opened[0].saver.saved_at == (1, 0)

    before_hashing(monkeypatch, 1, wait)
    with pytest.raises(OSError if is_full else StopRequested, match="No space left" if is_full else None):
        distil(config, tmp_path, stop=stop)
    complete = [0] if is_full else [0, 1]
    assert [event["step"] for event in events(tmp_path, "checkpoint")] == complete
    assert checkpoints(tmp_path) == [checkpoint_folder(tmp_path, step).name for step in complete]
