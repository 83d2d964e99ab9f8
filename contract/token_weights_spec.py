"""Masks and weights on the token loss, each off unless asked for."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contract.strict_model import StrictModel, contradiction


class TokenWeightsSpec(StrictModel):
    """Which tokens count, and how much. All weights multiply; the loss is Σ wD / Σ w over the global batch."""

    skip_special_tokens: bool = False
    """No loss on special tokens, the end-of-turn token among them (arXiv 2603.25562): stopping is then not learned."""
    skip_first_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """No loss on so many first tokens of each completion: a teacher that is shown more than the student may open with
    words that give it away (SDFT, arXiv 2601.19897)."""
    prefix_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Loss on so many first tokens of each completion alone (arXiv 2602.15260); None: on all of it."""
    entropy_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Loss on this share of each completion's tokens, those with the highest ``entropy_score`` (TIP, arXiv 2604.14084;
    0.5 there); None: on all."""
    entropy_score: Literal["entropy", "soft_or"] = "entropy"
    """Of ``entropy_share``: the student's entropy, or TIP's h + d − h·d, which keeps confident errors too."""
    drift_gamma: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """γ of wₜ = 1 + γ (1 − share of the drift from the teacher that lies before t) (IW-OPD, arXiv 2606.22600; 0.5
    there); 0 switches it off."""
    pass_rate: bool = False
    """Each problem weighs p (1 − p), p the share of its rollouts that pass (PACED, arXiv 2603.11178)."""

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
                "it ranks the tokens of which a share is kept, and no share is given",
                "set loss.token_weights.entropy_share, or leave it out",
            )
        return self
