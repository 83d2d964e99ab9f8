"""Whether a model's logits are what the loss makes of its hidden states: tried with a few tokens when it is loaded.

The loss reads the final hidden states and the output head, never the model's own logits. A family whose logits
have another factor, cap or layer would be trained on other logits than it answers with; it is refused here.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from trd_engine.models.head import head_of
from trd_engine.models.loading import backbone_of, evaluation_mode
from trd_engine.runtime.errors import ModelRefusedError

_NUM_TOKENS = 6
_MAX_DIFFERENCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_MAX_DIFFERENCE_HALF = 0.05
"""Relative, over all of the tokens' logits."""


@torch.no_grad()
def require_known_head(role: str, model: PreTrainedModel) -> None:
    """Raise `ModelRefusedError` where the model's logits are not those that the loss would compute.

    The model is whole and without an adapter. Where its numbers are not finite nothing can be compared.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids_1T = (torch.arange(_NUM_TOKENS, device=model.device) * 7 % vocabulary).unsqueeze(0)
    head = head_of(model)
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits.squeeze(0).float()
        hidden_TH = backbone_of(model)(input_ids=ids_1T, use_cache=False).last_hidden_state.squeeze(0)
    if hidden_TH.shape[-1] == head.weight_VH.shape[-1]:
        hidden_TH = hidden_TH.to(head.weight_VH.dtype)
        ours_TV = nn.functional.linear(hidden_TH, head.weight_VH, head.bias_V).float() * head.scale
        if head.softcap is not None:
            ours_TV = head.softcap * torch.tanh(ours_TV / head.softcap)
        if not (logits_TV.isfinite().all() and ours_TV.isfinite().all()):
            return
        allowed = _MAX_DIFFERENCE.get(hidden_TH.dtype, _MAX_DIFFERENCE_HALF)
        if (ours_TV - logits_TV).norm() <= allowed * logits_TV.norm():
            return
    raise ModelRefusedError(
        f"the {role}'s architecture {type(model).__name__} has logits with a term that the loss does not compute, so "
        "that it would be trained on other logits than it answers with; choose a model of another architecture"
    )
