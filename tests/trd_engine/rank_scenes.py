"""What the processes of a test do, each started by ``torchrun``: see `test_distributed`."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.trd_engine.tiny_runs import metric
from trd_engine.config import load_config
from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.runtime import distributed
from trd_engine.runtime.distributed import open_world
from trd_engine.runtime.errors import NonFiniteError, StopRequested
from trd_engine.training import loop as train
from trd_engine.training import step
from trd_engine.training.checkpoints import checkpoint
from trd_engine.training.loop import distil
from trd_engine.types import TokenScores


def exchange(_folder: Path) -> None:
    """Uneven parts, and one without any."""
    with open_world(3) as world:
        share = world.share(4)
        assert world.gather([{"n": n} for n in share]) == [{"n": n} for n in range(4)]
        assert world.gather([] if world.rank else ["one"]) == ["one"]
        assert [world.sum(world.part_of(n)) for n in (1, 5, 9)] == [1, 5, 9]
        for count in (4, 2):
            gathered = world.gather([_scores_of(n) for n in world.share(count)])
            assert [s.target_logprobs_T.tolist() for s in gathered] == [[float(n)] * n for n in range(count)]
            assert [s.token_ids_TK.tolist() for s in gathered] == [[[n, 7]] * n for n in range(count)]
        mine = torch.arange(world.rank, dtype=torch.float32)
        assert world.concatenate(mine).tolist() == [0.0, 0.0, 1.0]
        assert (world.sum(world.rank), world.max(-world.rank)) == (3.0, 0.0)
        assert world.any(world.rank == 2)
        assert not world.any(False)


def _scores_of(length: int) -> TokenScores:
    """Of a completion of so many tokens."""
    return TokenScores(
        torch.tensor([[length, 7]] * length).reshape(-1, 2),
        torch.zeros(length, 2),
        torch.full((length,), float(length)),
    )


def last(folder: Path) -> None:
    """Until somebody ends them."""
    with open_world(2) as world:
        (folder / str(os.getpid())).touch()
        world.wait()
        time.sleep(120)


def stall(_folder: Path) -> None:
    """One is late where they wait for one another, and then hangs within a pass."""
    distributed._PASS_TIMEOUT = timedelta(seconds=12)  # which holds for meeting at the start, too
    with open_world(2) as world:
        time.sleep(16 * world.rank)
        world.wait()
        sys.stdout.write("waited\n")
        sys.stdout.flush()
        time.sleep(120 * world.rank)
        dist.all_reduce(torch.zeros(1))


def each(folder: Path) -> None:
    """A run of every spec in the folder, one after the other in one world: processes take long to start, and a
    launcher's store has room for one process group."""
    with open_world(2) as world:
        train.open_world = lambda _: nullcontext(world)  # type: ignore[assignment]
        for path in sorted(folder.glob("*.json")):
            distil(load_config(path), folder / path.stem)


def stop(folder: Path) -> None:
    """A stop after the first step, with a checkpoint whose manifest takes longer than torchrun has patience."""
    write = checkpoint.write_manifest

    def slowly(*arguments: object, **facts: object) -> dict[str, object]:
        time.sleep(6)
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
    """A loss that is not finite in the second process alone; each says what it was told."""
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


SCENES = (exchange, last, stall, each, stop, break_a_token)

if __name__ == "__main__":
    {scene.__name__: scene for scene in SCENES}[sys.argv[1]](Path(sys.argv[2]))
