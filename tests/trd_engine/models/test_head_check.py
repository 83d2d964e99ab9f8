"""A model whose logits the loss would not compute is refused; every family that it does compute passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trd_engine.models.attention.test_packing import MAMBA, OTHERWISE, PACKED, make_model
from trd_engine.models.head import require_known_head
from trd_engine.runtime.errors import ModelRefusedError

KNOWN: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {**PACKED["gemma2"], "final_logit_softcapping": 1.0},
    "cohere2": {**PACKED["cohere2"], "logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "falcon_h1": {**OTHERWISE["falcon_h1"][1], "lm_head_multiplier": 0.5},
    "recurrent_gemma": {"logits_soft_cap": 1.0, "lru_width": 32},
    "gptj": OTHERWISE["gptj"][1],
    "mamba2": MAMBA,
    "llama4_text": OTHERWISE["llama4_text"][1],
}


@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_known_heads_pass(family: str, dtype: torch.dtype) -> None:
    require_known_head("student", make_model(family, KNOWN[family]).to(dtype))


def test_another_term_is_refused_by_name() -> None:
    """The same name as Granite's divisor, but a factor."""
    model = make_model("hyperclovax", {"logits_scaling": 0.5})
    with pytest.raises(
        ModelRefusedError, match="teacher's architecture HyperCLOVAXForCausalLM computes its logits with a term"
    ):
        require_known_head("teacher", model)


def test_weights_that_are_not_finite_are_left_to_the_step() -> None:
    model = make_model("falcon_h1", {**OTHERWISE["falcon_h1"][1], "lm_head_multiplier": 0.5})
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    require_known_head("student", model)
