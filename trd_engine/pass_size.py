"""How many tokens go through a model in one pass, where the spec does not say.

More tokens a pass are faster only until the processor's units are busy, and what the layers keep for the backward
pass grows with each. On a CPU a few hundred tokens keep them busy, and memory is shared with all else.
"""

from __future__ import annotations

import torch
from torch import nn

from trd_engine.batching import DEFAULT_MICRO_BATCH_TOKENS
from trd_engine.models import TrainedModel, backbone_of, causal_lm_of

KEPT_BYTES_CPU = 2**30
"""What the layers' matrices may take in and give out in one pass, which is about three quarters of what is kept."""
MIN_TOKENS_CPU = 256
"""With fewer, reading the weights and adding up their gradients would take a tenth of the time and more."""


def default_pass_tokens(student: TrainedModel, device: torch.device) -> int:
    """Tokens of a micro-batch; the same for the same model, so that a resumed run splits its batches alike."""
    if device.type != "cpu" or causal_lm_of(student).is_gradient_checkpointing:
        return DEFAULT_MICRO_BATCH_TOKENS
    linear = [layer for layer in backbone_of(student).modules() if isinstance(layer, nn.Linear)]
    bytes_a_token = sum(4 * (layer.in_features + layer.out_features) for layer in linear)
    return min(DEFAULT_MICRO_BATCH_TOKENS, max(MIN_TOKENS_CPU, KEPT_BYTES_CPU // max(1, bytes_a_token)))
