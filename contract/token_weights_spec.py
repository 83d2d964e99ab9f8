"""Masks and weights on the token loss; all are off by default."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contract.strict_model import StrictModel, contradiction


class TokenWeightsSpec(StrictModel):
    """Which tokens count, and how much. All weights multiply; the loss is Σ wD / Σ w over the global batch."""

    skip_special_tokens: bool = False
    """No loss on special tokens, including the end-of-turn token (arXiv 2603.25562): stopping is then not learned."""
    skip_first_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Number of first tokens of each completion without a loss: a teacher that sees more than the student may open
    with words that refer to it (SDFT, arXiv 2601.19897)."""
    prefix_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Loss only on this number of first tokens of each completion (arXiv 2602.15260); None means on all."""
    entropy_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Loss only on this share of each completion's tokens, those with the highest ``entropy_score`` (TIP, arXiv
    2604.14084, uses 0.5); None means on all."""
    entropy_score: Literal["entropy", "soft_or"] = "entropy"
    """Score for ``entropy_share``: the student's entropy, or TIP's h + d − h·d, which also keeps confident errors."""
    drift_gamma: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """γ of wₜ = 1 + γ (1 − share of the drift from the teacher that lies before t) (IW-OPD, arXiv 2606.22600,
    uses 0.5); 0 switches it off."""
    pass_rate: bool = False
    """Weight each problem by p (1 − p), where p is the share of its rollouts that pass (PACED, arXiv 2603.11178)."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.prefix_tokens is not None and self.skip_first_tokens >= self.prefix_tokens:
            raise contradiction(
                "loss.token_weights.skip_first_tokens",
                self.skip_first_tokens,
                f"of a prefix of {self.prefix_tokens} tokens nothing is left",
                "lower it, or raise loss.token_weights.prefix_tokens",
            )
        if self.entropy_score != "entropy" and self.entropy_share is None:
            raise contradiction(
                "loss.token_weights.entropy_score",
                self.entropy_score,
                "it ranks the tokens for entropy_share, which is not set",
                "set loss.token_weights.entropy_share, or leave it out",
            )
        return self
