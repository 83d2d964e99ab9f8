"""A run from the command line that SIGKILL ends at any moment is resumed, and ends bitwise as an uninterrupted one."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.killed_runs import (
    after_events,
    after_step,
    differences,
    events_so_far,
    in_phase,
    interrupt_at,
    never_committing_step_2,
    run_and_interrupt,
    run_and_kill,
    start,
    while_saving,
)
from tests.trd_engine.tiny_runs import spec, write_data
from trd_engine.config import parse_config
from trd_engine.training.checkpoints.checkpoint import checkpoint_draft, checkpoint_folder, newest_checkpoint
from trd_engine.training.loop import distil

NUM_STEPS = 6


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two rounds of three steps, of which every other is saved, by a student with dropout that teaches itself and
    whose teacher follows it: what a resume must put back is in more than the weights."""
    data = write_data(tmp_path_factory.mktemp("data"), train=24, heldout=4)
    return spec(
        data,
        teacher=None,
        rounds=2,
        lora={"rank": 4, "alpha": 8, "dropout": 0.1},
        teacher_update={"kind": "ema", "decay": 0.5},
        optim={"learning_rate": 3e-3, "batch_size": 4},
        checkpoints={"every_steps": 2, "keep": 2},
        evaluation={"dataset": {"path": str(data / "heldout.jsonl")}, "k": 1, "every_steps": 2},
        sampling={"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 24},
        refine={"max_prompt_tokens": 192, "max_new_tokens": 24},
    )


@pytest.fixture(scope="module")
def whole(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    distil(parse_config(document), out, prune_checkpoints=True)
    return out


@pytest.mark.slow
def test_a_run_killed_at_every_stage_ends_as_one_never_killed(
    document: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """Between steps while a checkpoint is hashed, while one is written, and while the next round is collected."""
    out = tmp_path / "killed"
    process = start(document, out, never_committing_step_2)
    interrupt_at(process, out, after_step(3), signal.SIGKILL)
    process.join()
    assert [event["step"] for event in events_so_far(out) if event["type"] == "checkpoint"] == [0]
    assert checkpoint_draft(out, 2).is_dir()
    assert newest_checkpoint(out) == checkpoint_folder(out, 0)
    run_and_kill(document, out, [while_saving(2), in_phase("refining", 1)])
    assert differences(out, whole, NUM_STEPS) == []


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_never_killed(
    document: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """Each process reports a dozen events before its first step after a resume, and about sixty in a whole run."""
    chance = random.Random(0)
    moments = [after_events(chance.randint(1, 25)) for _ in range(5)]
    run_and_kill(document, tmp_path / "killed", moments)
    assert differences(tmp_path / "killed", whole, NUM_STEPS) == []


VLLM: dict[str, tuple[dict[str, Any], list[signal.Signals]]] = {
    "LoRA": ({"teacher_update": {"kind": "ema", "decay": 0.5}}, [signal.SIGTERM, signal.SIGKILL]),
    "full": ({"lora": None}, [signal.SIGTERM]),
}
"""Changes of the spec, and the signals that are sent in the second round."""


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize(("changes", "signals"), VLLM.values(), ids=VLLM)
def test_a_run_that_samples_with_vllm_continues_as_one_never_interrupted(
    document: dict[str, Any], tmp_path: Path, changes: dict[str, Any], signals: list[signal.Signals]
) -> None:
    """The engine that starts anew answers with the weights that the one before was given step by step.

    With LoRA it has an adapter for each role; with full weights it loads each role's in turn. A resumed run
    samples at once, which the kill interrupts.
    """
    pytest.importorskip("vllm", exc_type=ImportError)
    sampled = {**document, "teacher_update": {"kind": "frozen"}, **changes}
    sampled["sampling"] = {**document["sampling"], "engine": "vllm"}
    run_and_kill(sampled, tmp_path / "whole", [])
    moment = in_phase("refining", 1)
    run_and_interrupt(sampled, tmp_path / "interrupted", [(moment, sent) for sent in signals])
    assert differences(tmp_path / "interrupted", tmp_path / "whole", NUM_STEPS) == []
