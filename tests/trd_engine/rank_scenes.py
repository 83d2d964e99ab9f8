"""What the processes of a test do with one another, each started by ``torchrun``: see `test_distributed`.

Whole runs are in `rank_runs`: this module imports little, so that its processes start soon.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from trd_engine.runtime import distributed
from trd_engine.runtime.distributed import open_world
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


SCENES = (exchange, last, stall)

if __name__ == "__main__":
    {scene.__name__: scene for scene in SCENES}[sys.argv[1]](Path(sys.argv[2]))
