"""What the verifier and the lengths say of a round: no model is asked."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from trd_engine.types import Trajectory


def round_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Verifier accuracies of y_o and y_r, what refining turned into what, verdicts that failed, and lengths in tokens.

    Shares are of all trajectories of the round (METHOD: fail→pass 16.0 %, pass→fail 0.4 % in the paper), those of
    refinements of all that were refined: attempts that fit no refining prompt are left out.
    """
    count = len(trajectories)
    metrics = {
        "rollout_accuracy": sum(t.rollout_verdict.correct for t in trajectories) / count,
        "rollout_tokens_p50": float(statistics.median(len(t.rollout.token_ids) for t in trajectories)),
        "rollout_truncated_share": sum(t.rollout.finish_reason != "stop" for t in trajectories) / count,
    }
    metrics |= _failure_shares(trajectories)
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


def _failure_shares(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of all verdicts of the round, y_o's and y_r's: those which count as wrong because judging failed."""
    verdicts = [v for t in trajectories for v in (t.rollout_verdict, t.refined_verdict) if v is not None]
    return {
        "verifier_error_share": sum(v.failure == "error" for v in verdicts) / len(verdicts),
        "verifier_timeout_share": sum(v.failure == "time-out" for v in verdicts) / len(verdicts),
    }
