"""What a served teacher says of a completion's tokens: kept, stored, and read by the loss as logits.

A server gives the log-probabilities of a few tokens a position, never the whole vocabulary. The rest of the
mass is taken as spread evenly; a loss on the served tokens does not see it, and statistics are off by no more
than what it hides. A server that gives none leaves the target's own tokens: a distribution that is sure of
them, whose forward KL is the cross-entropy. So does a single token that a server told nothing of.

Shapes: T tokens of one completion, N of a micro-batch, C of a chunk, K served tokens, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from trd_engine.distributed import World
from trd_engine.fused_loss_products import LogitShape
from trd_engine.types import Trajectory

IMPOSSIBLE = -1e4
"""A logit whose probability is exactly 0 in fp32, and that is finite all the same."""
UNTOLD_NOTICE = "cross-entropy instead of the teacher's log-probabilities: "
"""How a trajectory's notice of it begins; the reason follows."""
_TIE_BREAK = 1e-3
"""How far below the least of the served tokens any other one stands at least, in nats."""


@dataclass(frozen=True)
class TokenScores:
    """The teacher's best tokens at each of a completion's, under its untempered distribution."""

    token_ids_TK: Tensor
    logprobs_TK: Tensor
    """Nats, in fp32."""
    target_logprobs_T: Tensor
    """Of the completion's own tokens, which need not be among the best; NaN where the server told nothing."""

    @classmethod
    def untold(cls, target_ids: Sequence[int], top_k: int) -> TokenScores:
        """Of a completion of whose tokens nothing was told; in the shape of those of which something was."""
        nothing_T = torch.full((len(target_ids),), torch.nan)
        ids_T1 = torch.tensor(list(target_ids), dtype=torch.int64).unsqueeze(-1)
        return cls(ids_T1.repeat(1, top_k), nothing_T.unsqueeze(-1).repeat(1, top_k), nothing_T)

    @property
    def is_told(self) -> Tensor:
        """[T], where the server told a distribution."""
        return ~self.target_logprobs_T.isnan()

    def at(self, places_N: Tensor) -> TokenScores:
        """Of some of the tokens."""
        return TokenScores(self.token_ids_TK[places_N], self.logprobs_TK[places_N], self.target_logprobs_T[places_N])

    @classmethod
    def concatenated(cls, scores: Sequence[TokenScores], device: torch.device) -> TokenScores:
        """Of several completions one after another, on `device`."""
        return cls(
            torch.cat([s.token_ids_TK for s in scores]).to(device),
            torch.cat([s.logprobs_TK for s in scores]).to(device),
            torch.cat([s.target_logprobs_T for s in scores]).to(device),
        )


@dataclass(frozen=True)
class ServedLogits:
    """A served distribution in the form in which the loss reads a teacher's logits."""

    token_ids_NK: Tensor
    logprobs_NK: Tensor
    target_ids_N: Tensor
    target_logprobs_N: Tensor
    rest_logprobs_N: Tensor
    """Of each token that the server said nothing of."""
    num_vocabulary: int
    shape: ClassVar[LogitShape] = LogitShape()

    @classmethod
    def of(cls, scores: TokenScores, target_ids_N: Tensor, num_vocabulary: int) -> ServedLogits:
        """What was served, for the target's tokens, over the student's vocabulary."""
        target_N = scores.target_logprobs_T
        is_served_N = (scores.token_ids_TK == target_ids_N.unsqueeze(-1)).any(-1)
        known_N = scores.logprobs_TK.exp().sum(-1) + target_N.exp().masked_fill(is_served_N, 0.0)
        num_others_N = (num_vocabulary - scores.token_ids_TK.shape[1] - (~is_served_N).float()).clamp(min=1)
        rest_N = ((1.0 - known_N).clamp(min=1e-12) / num_others_N).log()
        least_N = scores.logprobs_TK.amin(-1) - _TIE_BREAK
        return cls(
            scores.token_ids_TK.long(),
            scores.logprobs_TK,
            target_ids_N,
            torch.where(is_served_N, target_N, torch.minimum(target_N, least_N)),
            torch.minimum(rest_N, least_N),
            num_vocabulary,
        )

    @classmethod
    def sure_of(cls, target_ids_N: Tensor, num_vocabulary: int) -> ServedLogits:
        """All mass on the target's tokens."""
        zero_N = torch.zeros(len(target_ids_N), device=target_ids_N.device)
        ids_N1 = target_ids_N.unsqueeze(-1)
        return cls(ids_N1, zero_N.unsqueeze(-1), target_ids_N, zero_N, zero_N + IMPOSSIBLE, num_vocabulary)

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.logprobs_NK)

    @property
    def bytes_per_logit(self) -> int:
        """Of the buffer that `room` makes."""
        return self.logprobs_NK.element_size()

    def room(self, max_rows: int) -> Tensor:
        """A buffer for the logits of at most `max_rows` tokens."""
        return self.logprobs_NK.new_empty(min(max_rows, self.num_tokens), self.num_vocabulary)

    def output(self, rows: slice, out_CV: Tensor) -> None:
        """The log-probabilities of some rows."""
        out_CV.copy_(self.rest_logprobs_N[rows].unsqueeze(-1).expand_as(out_CV))
        out_CV.scatter_(1, self.target_ids_N[rows].unsqueeze(-1), self.target_logprobs_N[rows].unsqueeze(-1))
        out_CV.scatter_(1, self.token_ids_NK[rows], self.logprobs_NK[rows])


def write_scores(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write the scores of a round beside its trajectories; nothing where there are none."""
    scores = [t.scores for t in trajectories if t.scores is not None]
    if scores:
        save_file(_tensors(scores), path)


def with_stored_scores(path: Path, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories with the scores that `write_scores` wrote, or as they are where it wrote none."""
    if not path.exists():
        return list(trajectories)
    return with_scores(trajectories, _scores(load_file(path)))


def with_scores(trajectories: Sequence[Trajectory], scores: Sequence[TokenScores]) -> list[Trajectory]:
    """Each trajectory with the scores of its target."""
    return [replace(trajectory, scores=s) for trajectory, s in zip(trajectories, scores, strict=True)]


def gather_scores(world: World, mine: Sequence[TokenScores]) -> list[TokenScores]:
    """The scores of all processes, put together as `World.share` took them apart."""
    return world.gather(
        mine,
        lambda scores: save(_tensors(scores)) if scores else b"",  # a process may have had no share
        lambda data: _scores(load(data)) if data else [],
    )


def _tensors(scores: Sequence[TokenScores]) -> dict[str, Tensor]:
    whole = TokenScores.concatenated(scores, torch.device("cpu"))
    return {
        "token_ids": whole.token_ids_TK.to(torch.int32),
        "logprobs": whole.logprobs_TK,
        "target_logprobs": whole.target_logprobs_T,
        "lengths": torch.tensor([len(s.target_logprobs_T) for s in scores]),
    }


def _scores(tensors: Mapping[str, Tensor]) -> list[TokenScores]:
    lengths = tensors["lengths"].tolist()
    columns = (tensors[name].split(lengths) for name in ("token_ids", "logprobs", "target_logprobs"))
    return [TokenScores(*parts) for parts in zip(*columns, strict=True)]
