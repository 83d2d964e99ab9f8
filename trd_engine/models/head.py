"""The output head of a causal language model: its weight, bias, logit scale and soft cap.

Shapes: V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig

from trd_engine.models.loading import causal_lm_of


@dataclass(frozen=True)
class LogitShape:
    """What a model does to its head's output: soft_cap · tanh(scale · output / soft_cap); None: no cap."""

    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"the soft-cap is {self.soft_cap!r}: use a number above 0, or None for no cap")

    def apply(self, output_RV: Tensor) -> Tensor:
        """The logits of the head's output."""
        logits_RV = output_RV if self.scale == 1.0 else output_RV * self.scale
        return logits_RV if self.soft_cap is None else (logits_RV / self.soft_cap).tanh_().mul_(self.soft_cap)

    def chain_(self, gradient_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """Turns the gradient in the logits into the one in the head's output, in place."""
        if self.soft_cap is not None:
            gradient_RV.mul_(1 - (logits_RV / self.soft_cap).square_())
        return gradient_RV if self.scale == 1.0 else gradient_RV.mul_(self.scale)


_LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""As Cohere, Falcon-H1 and Muse Glimmer call it."""


_LOGIT_DIVISORS = ("logits_scaling",)
"""Granite's."""


_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Gemma's, RecurrentGemma's and xLSTM's."""


@dataclass(frozen=True)
class OutputHead:
    """How hidden states become logits: ``softcap(scale · (h Wᵀ + b))``."""

    weight_VH: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None


def head_of(model: nn.Module) -> OutputHead:
    """The output head, with the scale and the soft-cap of the families that have them.

    `known_head` holds the result against each model's own logits: one to which a name means something else is refused.
    """
    causal_lm = causal_lm_of(model)
    head = causal_lm.get_output_embeddings()
    config = causal_lm.config.get_text_config()
    return OutputHead(
        weight_VH=head.weight,
        bias_V=getattr(head, "bias", None),
        scale=_logit_scale(config),
        softcap=_first_set(config, _SOFT_CAPS),
    )


def _logit_scale(config: PreTrainedConfig) -> float:
    divisor = _first_set(config, _LOGIT_DIVISORS)
    return _first_set(config, _LOGIT_FACTORS) or (1.0 / divisor if divisor else 1.0)


def _first_set(config: PreTrainedConfig, names: Sequence[str]) -> float | None:
    """The first of a configuration's values that is there and not 0."""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if value), None)
