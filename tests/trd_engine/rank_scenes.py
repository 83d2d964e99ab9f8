"""What the processes of a test do with one another, forked or started by ``torchrun``: see `test_distributed`.

Whole runs are in `rank_runs`: this module imports little, so that processes of ``torchrun`` start soon.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from array import array
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trd_engine.rollouts.exchange import join_shares
from trd_engine.runtime import distributed, machine_files
from trd_engine.runtime.distributed import World, open_world
from trd_engine.types import Completion, Problem, TokenScores, Trajectory, Verdict


def exchange(_folder: Path) -> None:
    """Exchange uneven parts, one of them empty; then trajectories."""
    with open_world(3) as world:
        _gather(world)
        _join(world)


def _gather(world: World) -> None:
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
    """Make the scores of a completion of so many tokens."""
    return TokenScores(
        torch.tensor([[length, 7]] * length).reshape(-1, 2),
        torch.zeros(length, 2),
        torch.full((length,), float(length)),
    )


def _join(world: World) -> None:
    """Join trajectories of all kinds, in the order of one process; what is sent besides ids and texts is small."""
    problems = [Problem(str(number), "?", "1", extra={"tests": "x" * 9000}) for number in range(7)]
    pairs = [(problem, sample) for problem in problems for sample in range(2)]
    whole = [_trajectory(number, *pair) for number, pair in enumerate(pairs)]
    sent, gather = list[int](), dist.all_gather_object

    def measured(parts: list[Any], mine: Any, **options: Any) -> None:
        sent.append(len(pickle.dumps(mine)))
        gather(parts, mine, **options)

    dist.all_gather_object = measured
    share = [whole[number] for number in world.share(len(whole))]
    joined = join_shares(share, pairs, world)
    assert joined == whole
    assert {t.prompt_token_ids.itemsize for t in joined} == {4}  # type: ignore[attr-defined]
    assert sum(sent) < 400 * len(share) < 10 * sum(len(t.rollout.token_ids) for t in share)
    assert join_shares(share[:1] if world.is_main else [], pairs[:1], world) == whole[:1]
    assert join_shares([], [], world) == []


def _trajectory(number: int, problem: Problem, sample: int) -> Trajectory:
    """Make one with, one without a refinement, and one whose refinement is empty; texts have surrogates."""
    ids, text = array("i", range(number, number + 5000)), f"½ \ud800 {number}"
    refinement: dict[str, Any] = {}
    if number % 3:
        empty = Completion(array("i"), "", "length")
        refined = Completion(ids[: 7 * number], text * 2, "length") if number % 3 == 1 else empty
        verdict = Verdict(False, "time-out", "time-out") if number % 2 else None
        refinement = {"refine_prompt_token_ids": ids[:9], "refined": refined, "refined_verdict": verdict}
    rollout = Completion(ids, text, "stop")
    return Trajectory(problem, sample, ids[:3], rollout, Verdict(number % 2 == 0, "1"), notices=(text,), **refinement)


def share_files(folder: Path) -> None:
    """Share files of a run on two machines, whose disks are two folders: see `test_machine_files`."""
    os.environ |= {"LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "2"}
    machine_files.CHUNK_BYTES = 1000
    with open_world(2) as world:
        disk = folder / ("one", "two")[world.rank]
        draft = disk / "checkpoints" / "draft"
        owners = machine_files.disk_owners(draft.parent, world)
        (draft / "state").mkdir(parents=True)
        (draft / "state" / f"part-{world.rank}").write_bytes(bytes([world.rank]) * 2500)
        (draft / f"empty-{world.rank}").touch()
        machine_files.collect_files(draft, owners, world)
        weights = disk / "sampler"
        weights.mkdir()
        (weights / f"of-{world.rank}").write_text("x" * 1500 * (1 + world.rank))
        machine_files.share_folder(weights, world)
        sys.stdout.write(f"{owners}\n")


def last(folder: Path) -> None:
    """Wait until somebody ends the processes."""
    with open_world(2) as world:
        (folder / str(os.getpid())).touch()
        world.wait()
        time.sleep(120)


def stall(folder: Path) -> None:
    """Be late once where all wait for one another, and then hang within a pass."""
    (folder / os.environ["RANK"]).touch()
    while len(list(folder.iterdir())) < 2:  # both have started: the time-out holds for meeting in a group, too
        time.sleep(0.05)
    distributed._PASS_TIMEOUT = timedelta(seconds=4)
    with open_world(2) as world:
        time.sleep(7 * world.rank)
        world.wait()
        sys.stdout.write("waited\n")
        sys.stdout.flush()
        time.sleep(120 * world.rank)
        dist.all_reduce(torch.zeros(1))


SCENES = (last, stall)

if __name__ == "__main__":
    {scene.__name__: scene for scene in SCENES}[sys.argv[1]](Path(sys.argv[2]))
