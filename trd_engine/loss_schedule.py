"""How the loss itself changes over a run."""

from __future__ import annotations

from dataclasses import replace

from trd_engine.losses import Divergence


def divergence_at(divergence: Divergence, reverse_after: float | None, step: int, num_steps: int) -> Divergence:
    """The divergence of step number `step` (from 1) of `num_steps`: forward KL as it is given, and reverse KL once
    the share `reverse_after` of all steps is taken. None: always as given.

    First cover the teacher's modes, then settle on one: the two stages of PACED, arXiv 2603.11178. A pure function
    of the step, so that a resumed run needs no state for it.
    """
    if reverse_after is None or step <= reverse_after * num_steps:
        return divergence
    return replace(divergence, kind="reverse_kl")
