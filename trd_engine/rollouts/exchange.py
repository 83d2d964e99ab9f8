"""Joins the trajectories of all processes. Token ids and texts travel as bytes, and ids stay compact.

A round may hold a billion token ids. As Python integers in a tuple each takes 36 bytes, in an int32 array 4.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from trd_engine.runtime.distributed import World
from trd_engine.types import Completion, Problem, TokenScores, Trajectory, Verdict


class _Rest(NamedTuple):
    """What of a trajectory is neither token ids nor text; all processes know its problem."""

    num_bytes: tuple[int, ...]
    """Sizes of prompt, y_o and its text, and of refining prompt, y_r and its text if there is a y_r."""
    finish_reasons: tuple[Literal["stop", "length", "unknown_token"], ...]
    rollout_verdict: Verdict
    refined_verdict: Verdict | None
    notices: tuple[str, ...]
    scores: TokenScores | None


def join_shares(share: Sequence[Trajectory], pairs: Sequence[tuple[Problem, int]], world: World) -> list[Trajectory]:
    """Return the trajectories of all processes, one for each of `pairs` (problem, sample), in their order. Collective.

    `World.share` gave each process its part. What only a sampler or server reports of a completion is left out.
    """
    packed = [_packed(trajectory) for trajectory in share]
    all_rest = world.gather([rest for rest, _ in packed])
    own = bytearray().join(content for _, content in packed)
    own_N = torch.frombuffer(own, dtype=torch.uint8) if own else torch.zeros(0, dtype=torch.uint8)
    content = world.concatenate(own_N).numpy().data
    joined: dict[int, Trajectory] = {}
    # One process's part follows the other.
    for number in sorted(range(len(pairs)), key=lambda number: number % world.size):
        pieces = []
        for num_bytes in all_rest[number].num_bytes:
            pieces.append(content[:num_bytes])
            content = content[num_bytes:]
        joined[number] = _unpacked(*pairs[number], all_rest[number], pieces)
    return [joined[number] for number in range(len(pairs))]


def _packed(trajectory: Trajectory) -> tuple[_Rest, bytes]:
    parts = [(trajectory.prompt_token_ids, trajectory.rollout)]
    if trajectory.refined is not None:
        parts.append((trajectory.refine_prompt_token_ids or (), trajectory.refined))
    pieces = []
    for prompt, completion in parts:
        pieces += [array("i", prompt).tobytes(), array("i", completion.token_ids).tobytes()]
        pieces.append(completion.text.encode("utf-8", "surrogatepass"))
    rest = _Rest(
        tuple(map(len, pieces)),
        tuple(completion.finish_reason for _, completion in parts),
        trajectory.rollout_verdict,
        trajectory.refined_verdict,
        trajectory.notices,
        trajectory.scores,
    )
    return rest, b"".join(pieces)


def _unpacked(problem: Problem, sample: int, rest: _Rest, pieces: Sequence[memoryview]) -> Trajectory:
    parts = [
        (array("i", bytes(prompt)), Completion(array("i", bytes(ids)), str(text, "utf-8", "surrogatepass"), reason))
        for prompt, ids, text, reason in zip(pieces[::3], pieces[1::3], pieces[2::3], rest.finish_reasons, strict=True)
    ]
    (prompt, rollout), *refinement = parts
    refine_prompt, refined = refinement[0] if refinement else (None, None)
    return Trajectory(
        problem,
        sample,
        prompt,
        rollout,
        rest.rollout_verdict,
        refine_prompt,
        refined,
        rest.refined_verdict,
        rest.notices,
        rest.scores,
    )
