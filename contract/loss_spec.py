"""The loss in a job's spec: the paper's five variants by name, and the fields they set."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from contract.strict_model import StrictModel, contradiction
from contract.token_weights_spec import TokenWeightsSpec


class Preset(StrEnum):
    """The five variants of the paper; each sets fields of `LossSpec`, see `PRESET_LOSSES`."""

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
"""The fields of `LossSpec` that each preset sets; a field that the user gives overrides the preset."""


class LossSpec(StrictModel):
    """The token loss D(teacher, student) and the context the teacher scores in."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "cross_entropy"] = "forward_kl"
    """forward_kl is KL(teacher‖student), reverse_kl is KL(student‖teacher); cross_entropy is −log p of the
    refined trajectory's tokens, for a served teacher that returns no log-probabilities."""
    support: Literal["full", "top_k", "sampled"] = "full"
    """The full vocabulary, the teacher's top k tokens renormalised, or only the sampled token (Monte Carlo)."""
    teacher_top_k: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Tokens in the support when ``support`` is top_k (Fu et al. 2026, arXiv 2603.25562)."""
    beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Weight of the teacher in JSD's mixture; 0 means forward KL and 1 reverse KL."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """Divisor of both models' logits."""
    token_clip: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Each token's divergence is clamped from above at this value; 0 switches the clip off."""
    teacher_context: Literal["vanilla", "refine"] | None = None
    """The prompt in which the teacher scores; None means refine in mode trd, and vanilla otherwise."""
    token_weights: TokenWeightsSpec = TokenWeightsSpec()
    """Masks and weights on the tokens' losses."""
    reverse_after: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Train with forward KL for this share of the steps and with reverse KL afterwards (PACED, arXiv 2603.11178);
    None means ``divergence`` in all steps."""

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
            raise contradiction(
                f"loss.{field}", getattr(self, field), "the cross-entropy has no such setting", "leave it out"
            )
        if self.support == "sampled" and self.token_clip > 0:
            raise contradiction(
                "loss.token_clip",
                self.token_clip,
                "a Monte Carlo estimate on the sampled token cannot be clipped",
                'set loss.token_clip to 0, or loss.support to "full" or "top_k"',
            )
        if self.reverse_after is not None and self.divergence != "forward_kl":
            raise contradiction(
                "loss.reverse_after",
                self.reverse_after,
                f"the schedule starts with forward KL, but loss.divergence is {self.divergence}",
                'set loss.divergence to "forward_kl", or leave loss.reverse_after out',
            )
        return self
