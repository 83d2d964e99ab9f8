"""What a round's trajectories say of prefix failure, before anything is trained on them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trd_engine.types import Trajectory


def round_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Verifier accuracies of y_o and y_r, what refining turned into what, and lengths in tokens.

    Shares are of all trajectories of the round (METHOD: fail→pass 16.0 %, pass→fail 0.4 % in the paper).
    """
    count = len(trajectories)
    metrics = {
        "rollout_accuracy": sum(t.rollout_verdict.correct for t in trajectories) / count,
        "rollout_tokens_p50": float(statistics.median(len(t.rollout.token_ids) for t in trajectories)),
        "rollout_truncated_share": sum(t.rollout.finish_reason == "length" for t in trajectories) / count,
    }
    refined = [(t.rollout_verdict.correct, t.refined_verdict.correct) for t in trajectories if t.refined_verdict]
    if refined:
        completions = [t.refined for t in trajectories if t.refined]
        metrics |= {
            "refined_accuracy": sum(after for _, after in refined) / count,
            "fail_to_pass": sum(after and not before for before, after in refined) / count,
            "pass_to_fail": sum(before and not after for before, after in refined) / count,
            "refined_tokens_p50": float(statistics.median(len(c.token_ids) for c in completions)),
            "refined_truncated_share": sum(c.finish_reason == "length" for c in completions) / count,
        }
    return metrics


def epistemic_token_ids(tokenizer: PreTrainedTokenizerBase, onsets: Sequence[str]) -> tuple[int, ...]:
    """First tokens of the words that open a doubt or a correction, with and without a space before them.

    A word whose first token is only a fragment ("Al" of "Alternatively") is left out: its mass would be
    that of many other words too.
    """
    ids: set[int] = set()
    unknown = tokenizer.unk_token_id
    for onset in onsets:
        for text in (onset, " " + onset):
            encoded = tokenizer.encode(text, add_special_tokens=False)
            if len(encoded) == 1 and encoded[0] != unknown:
                ids.add(encoded[0])
    return tuple(sorted(ids))
