"""The output head of a causal language model: its weight, bias, logit scale and soft cap.

Shapes: R rows, T tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from trd_engine.models.loading import backbone_of, causal_lm_of, evaluation_mode
from trd_engine.runtime.errors import ModelRefusedError

_NUM_TRIAL_TOKENS = 6
_MAX_DIFFERENCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_MAX_DIFFERENCE_HALF = 0.05
"""Relative, over the logits of all trial tokens; of 16-bit dtypes."""
_LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Configuration names in Cohere, Falcon-H1 and Muse Glimmer."""
_LOGIT_DIVISORS = ("logits_scaling",)
"""Granite."""
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Gemma, RecurrentGemma and xLSTM."""


@dataclass(frozen=True)
class LogitTransform:
    """How the head's output becomes logits: soft_cap · tanh(scale · output / soft_cap); None: no cap."""

    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"the soft-cap is {self.soft_cap!r}: use a number above 0, or None for no cap")

    def apply(self, output_RV: Tensor) -> Tensor:
        """Return the logits of the head's output."""
        logits_RV = output_RV if self.scale == 1.0 else output_RV * self.scale
        return logits_RV if self.soft_cap is None else (logits_RV / self.soft_cap).tanh_().mul_(self.soft_cap)

    def chain_(self, gradient_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """Turn the gradient of the logits into that of the head's output, in place."""
        if self.soft_cap is not None:
            gradient_RV.mul_(1 - (logits_RV / self.soft_cap).square_())
        return gradient_RV if self.scale == 1.0 else gradient_RV.mul_(self.scale)


@dataclass(frozen=True)
class OutputHead:
    """How hidden states become logits: `LogitTransform` of h Wᵀ + b."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """Return the logits of R hidden states in fp32; the product runs in their dtype or autocast's."""
        weight_VH = self.weight_VH.to(hidden_RH.dtype)
        bias_V = None if self.bias_V is None else self.bias_V.to(hidden_RH.dtype)
        output_RV = nn.functional.linear(hidden_RH, weight_VH, bias_V).float()
        return LogitTransform(self.scale, self.soft_cap).apply(output_RV)


def head_of(model: nn.Module) -> OutputHead:
    """Return the output head, with the scale and the soft cap of the families that have them.

    `require_known_head` compares the result with the model's own logits, in case a name means something else to it.
    """
    causal_lm = causal_lm_of(model)
    head = causal_lm.get_output_embeddings()
    config = causal_lm.config.get_text_config()
    divisor = _first_set(config, _LOGIT_DIVISORS)
    return OutputHead(
        weight_VH=head.weight,
        bias_V=getattr(head, "bias", None),
        scale=_first_set(config, _LOGIT_FACTORS) or (1.0 / divisor if divisor else 1.0),
        soft_cap=_first_set(config, _SOFT_CAPS),
    )


def _first_set(config: PreTrainedConfig, names: Sequence[str]) -> float | None:
    """Return the first of these values of a configuration that exists and is not 0."""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if value), None)


@torch.no_grad()
def require_known_head(role: str, model: PreTrainedModel) -> None:
    """Raise `ModelRefusedError` unless the model's logits, for a few tokens, are those that the loss computes.

    The loss reads the final hidden states and the output head, never the model's own logits. A family whose logits have
    another factor, cap or layer would be trained on other logits than it samples from.

    The model must not be sharded and has no adapter yet. Values that are not finite are not compared.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids_1T = (torch.arange(_NUM_TRIAL_TOKENS, device=model.device) * 7 % vocabulary).unsqueeze(0)
    head = head_of(model)
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits.squeeze(0).float()
        hidden_TH = backbone_of(model)(input_ids=ids_1T, use_cache=False).last_hidden_state.squeeze(0)
    if hidden_TH.shape[-1] == head.weight_VH.shape[-1]:
        hidden_TH = hidden_TH.to(head.weight_VH.dtype)
        ours_TV = head.logits(hidden_TH)
        if not (logits_TV.isfinite().all() and ours_TV.isfinite().all()):
            return
        allowed = _MAX_DIFFERENCE.get(hidden_TH.dtype, _MAX_DIFFERENCE_HALF)
        if (ours_TV - logits_TV).norm() <= allowed * logits_TV.norm():
            return
    raise ModelRefusedError(
        f"the {role}'s architecture {type(model).__name__} computes its logits with a term that the loss does not "
        "have; it would be trained on other logits than it samples from. Choose a model of another architecture"
    )
