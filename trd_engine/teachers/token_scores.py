"""A served teacher's token scores in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trd_engine.types import TokenScores, Trajectory

UNSCORED_NOTICE = "cross-entropy instead of the teacher's log-probabilities: "
"""Beginning of a trajectory's notice that it is unscored; the reason follows."""


def write_scores(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write the scores of a round beside its trajectories; write no file if there are none."""
    scores = [t.scores for t in trajectories if t.scores is not None]
    if scores:
        save_file(_tensors(scores), path)


def with_stored_scores(path: Path, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Return the trajectories with the scores in the file of `write_scores`, or unchanged if there is no file."""
    if not path.exists():
        return list(trajectories)
    tensors = load_file(path)
    lengths = tensors["lengths"].tolist()
    columns = (tensors[name].split(lengths) for name in ("token_ids", "logprobs", "target_logprobs"))
    return with_scores(trajectories, [TokenScores(*parts) for parts in zip(*columns, strict=True)])


def with_scores(trajectories: Sequence[Trajectory], scores: Sequence[TokenScores]) -> list[Trajectory]:
    """Return each trajectory with the scores of its target."""
    return [replace(trajectory, scores=s) for trajectory, s in zip(trajectories, scores, strict=True)]


def _tensors(scores: Sequence[TokenScores]) -> dict[str, Tensor]:
    whole = TokenScores.concatenated(scores, torch.device("cpu"))
    return {
        "token_ids": whole.token_ids_TK.to(torch.int32),
        "logprobs": whole.logprobs_TK,
        "target_logprobs": whole.target_logprobs_T,
        "lengths": torch.tensor([len(s.target_logprobs_T) for s in scores]),
    }
