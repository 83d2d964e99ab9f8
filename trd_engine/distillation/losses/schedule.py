"""What the spec's loss is to the engine, and how it changes over a run."""

from __future__ import annotations

from dataclasses import replace

from trd_engine.config import LossConfig
from trd_engine.distillation.losses.divergence import Divergence


def divergence_of(loss: LossConfig, served_top_k: int | None) -> Divergence:
    """The spec's divergence; `served_top_k` is how many tokens a served teacher scores, where it does.

    The cross-entropy is the forward KL from a teacher that is sure of the target's tokens.
    """
    return Divergence(
        kind="forward_kl" if loss.divergence == "cross_entropy" else loss.divergence,
        support=loss.support,
        teacher_top_k=served_top_k or loss.teacher_top_k,
        beta=loss.beta,
        temperature=loss.temperature,
        token_clip=loss.token_clip,
    )


def divergence_at(divergence: Divergence, reverse_after: float | None, step: int, num_steps: int) -> Divergence:
    """The divergence of step number `step` (from 1) of `num_steps`: forward KL as it is given, and reverse KL once
    the share `reverse_after` of all steps is taken. None: always as given.

    First cover the teacher's modes, then settle on one: the two stages of PACED, arXiv 2603.11178. A pure function
    of the step, so that a resumed run needs no state for it.
    """
    if reverse_after is None or step <= reverse_after * num_steps:
        return divergence
    return replace(divergence, kind="reverse_kl")
