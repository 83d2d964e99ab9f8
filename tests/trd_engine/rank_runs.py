"""Runs of several processes, forked or started by ``torchrun``: see `test_several_processes` and `test_distributed`."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tests.trd_engine.tiny_runs import metric, until
from trd_engine.config import load_config, parse_config
from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.runtime.distributed import open_world
from trd_engine.runtime.errors import NonFiniteError, StopRequested
from trd_engine.training import loop as train
from trd_engine.training import session, step
from trd_engine.training.checkpoints import checkpoint
from trd_engine.training.loop import distil
from trd_engine.types import Trajectory


def plan(folder: Path) -> None:
    """Run the specs of ``plan.json``, one after the other in one world.

    A launcher's store has room for one process group. A run that fails ends the plan. Each checkpoint is hashed once
    the last process has taken another step, or has none to take.
    """
    planned = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    optimizer_step = session.optimizer_step

    def checked(models: ModelPair, *arguments: Any, **options: Any) -> dict[str, float]:
        metrics = optimizer_step(models, *arguments, **options)
        if models.teacher is not None:
            whole = [name for name, p in models.teacher.model.named_parameters() if not isinstance(p, DTensor)]
            assert not whole, f"the teacher has whole weights after a step: {whole}"
        return metrics

    session.optimizer_step = checked
    with open_world(int(os.environ["WORLD_SIZE"])) as world:
        train.open_world = lambda _: nullcontext(world)  # type: ignore[assignment]
        reached = folder / "reached"
        if world.rank == world.size - 1:
            _say_how_far(reached)
        if world.is_main:
            _hash_late(reached)
        for document, out, checkpoint_of_before in planned:
            before = None if checkpoint_of_before is None else Path(checkpoint_of_before)
            reached.unlink(missing_ok=True)
            world.wait()
            distil(parse_config(document), Path(out), resume_from=before)


def _say_how_far(reached: Path) -> None:
    """Write each step that is taken, and a last one without end, to the file `reached`."""
    train_step, close = session.Session.train_step, session.Session.close

    def write(step: float) -> None:
        reached.with_suffix(".new").write_text(str(step), encoding="utf-8")
        reached.with_suffix(".new").replace(reached)

    def step(run: session.Session, trajectories: Sequence[Trajectory]) -> None:
        train_step(run, trajectories)
        write(run.state.step)

    def end(run: session.Session) -> None:
        close(run)
        write(math.inf)

    session.Session.train_step, session.Session.close = step, end  # type: ignore[method-assign]


def _hash_late(reached: Path) -> None:
    write_manifest = checkpoint.write_manifest

    def late(folder: Path, **facts: Any) -> dict[str, Any]:
        until(lambda: reached.exists() and float(reached.read_text(encoding="utf-8")) > facts["step"])
        return write_manifest(folder, **facts)

    checkpoint.write_manifest = late


def stop(folder: Path) -> None:
    """Stop after the first step, with a checkpoint whose manifest takes longer than torchrun's patience of 1 s."""
    write = checkpoint.write_manifest

    def slowly(*arguments: object, **facts: object) -> dict[str, object]:
        if facts["step"] == 1:
            time.sleep(2.5)
        return write(*arguments, **facts)  # type: ignore[arg-type]

    checkpoint.write_manifest = slowly  # type: ignore[assignment]
    out = folder / "out"
    try:
        distil(
            load_config(folder / "spec.json"),
            out,
            stop=lambda: bool((out / "events.jsonl").exists() and metric(out, "loss")),
        )
    except StopRequested:
        sys.exit(75)


def break_a_token(folder: Path) -> None:
    """Make the loss not finite in the second process alone; each reports its error."""
    score = step.score

    def broken(models: ModelPair, batch: MicroBatch, *arguments: Any, **options: Any) -> Any:
        scored = score(models, batch, *arguments, **options)
        if models.world.rank == 1 and torch.is_grad_enabled():
            (folder / "broken.json").write_text(json.dumps(batch.positions[0]), encoding="utf-8")
            divergence_N = scored.divergence_N.clone()
            divergence_N[0] = float("nan")
            scored = replace(scored, loss=scored.loss * float("nan"), divergence_N=divergence_N)
        return scored

    step.score = broken
    try:
        distil(load_config(folder / "spec.json"), folder / "run")
    except NonFiniteError as error:
        (folder / f"rank-{os.environ['RANK']}.txt").write_text(str(error), encoding="utf-8")


if __name__ == "__main__":
    {"stop": stop}[sys.argv[1]](Path(sys.argv[2]))
