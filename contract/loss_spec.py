"""The loss as a user writes it: the paper's five variants by name, and their parts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from contract.strict_model import StrictModel, contradiction
from contract.token_weights_spec import TokenWeightsSpec


class Preset(StrEnum):
    """The five variants of the paper; each fills `LossSpec`, see `PRESET_LOSSES`."""

    FORWARD_KL = "forward_kl"
    FORWARD_KL_CLIP = "forward_kl_clip"
    REVERSE_KL = "reverse_kl"
    REVERSE_KL_TOPK = "reverse_kl_topk"
    TRD = "trd"


PRESET_LOSSES: dict[Preset, dict[str, Any]] = {
    Preset.FORWARD_KL: {"divergence": "forward_kl", "support": "full", "token_clip": 0.0, "teacher_context": "vanilla"},
    Preset.FORWARD_KL_CLIP: {
        "divergence": "forward_kl",
        "support": "full",
        "token_clip": 0.1,
        "teacher_context": "vanilla",
    },
    Preset.REVERSE_KL: {"divergence": "reverse_kl", "support": "full", "token_clip": 0.0, "teacher_context": "vanilla"},
    Preset.REVERSE_KL_TOPK: {
        "divergence": "reverse_kl",
        "support": "top_k",
        "teacher_top_k": 32,
        "token_clip": 0.0,
        "teacher_context": "vanilla",
    },
    Preset.TRD: {"divergence": "forward_kl", "support": "full", "token_clip": 0.0, "teacher_context": "refine"},
}
"""What each preset sets in `LossSpec`; a field that the user gives beside the preset wins."""


class LossSpec(StrictModel):
    """The token loss D(teacher, student) and the context the teacher scores in."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "cross_entropy"] = "forward_kl"
    """forward_kl is KL(teacher‖student), reverse_kl is KL(student‖teacher); cross_entropy is −log p of the
    refined trajectory's own tokens, for a served teacher that gives no log-probabilities."""
    support: Literal["full", "top_k", "sampled"] = "full"
    """Whole vocabulary, the teacher's top k tokens renormalised, or the sampled token alone (Monte-Carlo)."""
    teacher_top_k: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Tokens in the support when ``support`` is top_k (Fu et al. 2026, arXiv 2603.25562)."""
    beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Weight of the teacher in JSD's mixture; 0 means forward KL and 1 reverse KL."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """Both models' logits are divided by it."""
    token_clip: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Each token's divergence is clamped from above at this value; 0 switches the clip off."""
    teacher_context: Literal["vanilla", "refine"] | None = None
    """What the teacher sees while it scores; None takes refine in mode trd and vanilla elsewhere."""
    token_weights: TokenWeightsSpec = TokenWeightsSpec()
    """Masks and weights on the tokens' losses."""
    reverse_after: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Train with forward KL for this share of the steps, and with reverse KL after it (PACED, arXiv 2603.11178);
    None: with ``divergence`` throughout."""

    @model_validator(mode="after")
    def _supports_fit(self) -> Self:
        if self.divergence == "jsd" and self.support != "full":
            raise contradiction(
                "loss.support",
                self.support,
                "JSD is defined on the full vocabulary only",
                'set loss.support to "full", or loss.divergence to "forward_kl" or "reverse_kl"',
            )
        if self.divergence == "cross_entropy" and (self.support != "full" or self.temperature != 1.0):
            field = "support" if self.support != "full" else "temperature"
            raise contradiction(f"loss.{field}", getattr(self, field), "the cross-entropy has no other", "leave it out")
        if self.support == "sampled" and self.token_clip > 0:
            raise contradiction(
                "loss.token_clip",
                self.token_clip,
                "a Monte-Carlo estimate on the sampled token has no token clip",
                'set loss.token_clip to 0, or loss.support to "full" or "top_k"',
            )
        if self.reverse_after is not None and self.divergence != "forward_kl":
            raise contradiction(
                "loss.reverse_after",
                self.reverse_after,
                f"the schedule goes from forward to reverse KL, and loss.divergence is {self.divergence}",
                'set loss.divergence to "forward_kl", or leave loss.reverse_after out',
            )
        return self
