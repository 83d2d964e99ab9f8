"""What the verifier and the lengths say about a round, and what looks wrong with the first one: no model is asked."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from trd_data.notices import Notice
from trd_engine.types import Trajectory

NOTICED_SHARE = 0.9
"""Share of the first round's rollouts that a notice needs, from `MIN_ROLLOUTS_FOR_SHARE` on."""
MIN_ROLLOUTS_FOR_SHARE = 20
"""Among fewer rollouts all of them must be alike, since a few of a small number happen by chance."""
MIN_ROLLOUTS = 4
"""Among fewer rollouts nothing is noticed."""
MIN_EQUAL_ROLLOUTS = 8
"""Rollouts, of at least half as many problems, for a notice of equal ones: two problems may have the same answer."""
_SHOWN = 200


@dataclass(frozen=True)
class RolloutFacts:
    """The part of a rollout that `rollout_notices` needs; small, since processes exchange it."""

    problem_id: str
    is_cut: bool
    """It reached the length limit."""
    digest: bytes
    """Digest of its text."""
    end: str
    """End of its text; empty if there is nothing but white space."""

    @classmethod
    def of(cls, trajectory: Trajectory) -> RolloutFacts:
        """Return the facts of one rollout."""
        rollout = trajectory.rollout
        text = rollout.text.strip()
        digest = sha256(text.encode("utf-8", "replace")).digest()
        return cls(trajectory.problem.id, rollout.finish_reason != "stop", digest, text[-_SHOWN:])


def rollout_notices(rollouts: Sequence[RolloutFacts], max_new_tokens: int) -> list[Notice]:
    """Return notices if (nearly) all rollouts of a run's first round are cut, empty, or equal to each other."""
    total = len(rollouts)
    needed = max(MIN_ROLLOUTS, NOTICED_SHARE * total if total >= MIN_ROLLOUTS_FOR_SHARE else total)
    notices = []
    cut = [rollout for rollout in rollouts if rollout.is_cut]
    if len(cut) >= needed:
        notices.append(
            Notice(
                "rollouts_cut",
                f"{len(cut)} of {total} rollouts of the first round do not end before the length limit, "
                f"sampling.max_new_tokens = {max_new_tokens}",
                "raise sampling.max_new_tokens; if the texts continue after their answers, add the token that ends a "
                "turn to eos_token_id in the model's generation_config.json",
                len(cut),
                next((rollout.end for rollout in cut if rollout.end), ""),
            )
        )
    empty = [rollout for rollout in rollouts if not rollout.end]
    if len(empty) >= needed:
        notices.append(
            Notice(
                "rollouts_empty",
                f"{len(empty)} of {total} rollouts of the first round have no text",
                "look at the prompts (trd datasets preview) and at the model's chat template and stop tokens",
                len(empty),
                f"problem {empty[0].problem_id}",
            )
        )
    digest, num_equal = Counter(rollout.digest for rollout in rollouts).most_common(1)[0] if rollouts else (b"", 0)
    equal = [rollout for rollout in rollouts if rollout.digest == digest]
    num_problems = len({rollout.problem_id for rollout in equal})
    if num_equal >= max(needed, MIN_EQUAL_ROLLOUTS) and 2 * num_problems >= MIN_EQUAL_ROLLOUTS and equal[0].end:
        notices.append(
            Notice(
                "rollouts_equal",
                f"{num_equal} of {total} rollouts of the first round, to {num_problems} problems, have the same text",
                "look at the prompts (trd datasets preview): they may all show the same text, or leave out the problem",
                num_equal,
                equal[0].end,
            )
        )
    return notices


def round_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return verifier accuracies of y_o and y_r, how refining changed verdicts, verdicts that failed, and lengths in
    tokens.

    Shares are of all trajectories of the round (METHOD: fail→pass 16.0 %, pass→fail 0.4 % in the paper), those of
    refinements of all that were refined: attempts that fit no refining prompt are left out.
    """
    count = len(trajectories)
    metrics = {
        "rollout_accuracy": sum(t.rollout_verdict.correct for t in trajectories) / count,
        "rollout_tokens_p50": float(statistics.median(len(t.rollout.token_ids) for t in trajectories)),
        "rollout_truncated_share": sum(t.rollout.finish_reason != "stop" for t in trajectories) / count,
    }
    verdicts = [v for t in trajectories for v in (t.rollout_verdict, t.refined_verdict) if v is not None]
    metrics |= {
        "verifier_error_share": sum(v.failure == "error" for v in verdicts) / len(verdicts),
        "verifier_timeout_share": sum(v.failure == "time-out" for v in verdicts) / len(verdicts),
    }
    refined = [(t.rollout_verdict.correct, t.refined_verdict.correct) for t in trajectories if t.refined_verdict]
    if refined:
        completions = [t.refined for t in trajectories if t.refined and t.refined_verdict]
        count = len(refined)
        metrics |= {
            "refined_accuracy": sum(after for _, after in refined) / count,
            "fail_to_pass": sum(after and not before for before, after in refined) / count,
            "pass_to_fail": sum(before and not after for before, after in refined) / count,
            "refined_tokens_p50": float(statistics.median(len(c.token_ids) for c in completions)),
            "refined_truncated_share": sum(c.finish_reason != "stop" for c in completions) / count,
        }
    return metrics
