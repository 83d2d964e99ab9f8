"""The lean forward gives the logits of the model's own, is tried before it is used, and is not there for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from trd_engine.generation.hf.fast_decoder import LeanDecoder, lean_decoder
from trd_engine.generation.hf.small_batch_linear import REORDER_AFTER, skinny_products
from trd_engine.generation.hf.window import DecodingWindow

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "llama without grouped heads": LlamaConfig(**{**SIZES, "num_key_value_heads": 6}, tie_word_embeddings=True),
    "llama 3's positions": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen 2": Qwen2Config(**SIZES),
    "qwen 3": Qwen3Config(**SIZES, head_dim=16),
}
PROMPTS = [(2, 3, 4, 5, 6), (7, 8), (9,), (2, 3, 4, 5, 6), (10, 11, 12, 13)]


def make_model(config: PretrainedConfig) -> PreTrainedModel:
    """Make a model whose biases and norm weights are random too; in a new model they are zeros and ones."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return model


def decode(model: PreTrainedModel, lean: LeanDecoder | None, prompts: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the logits of each token; one row leaves on the way, and then all but one."""
    window = DecodingWindow(model, prompts, lean)
    logits = [window.read_prompts(1_024, lambda: None)]
    num_rows = len(prompts)
    for step in range(2 * REORDER_AFTER + 8):
        num_kept = {REORDER_AFTER + 4: num_rows - 1, 2 * REORDER_AFTER + 4: 1}.get(step, num_rows)
        logits.append(window.advance((torch.arange(num_rows) + step) % 64, range(num_kept)))
        num_rows = num_kept
    return logits


def assert_alike(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, own in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_models_own_forward(name: str) -> None:
    model = make_model(CONFIGS[name])
    with torch.no_grad():
        expected = decode(model, None, PROMPTS)
        with skinny_products(model):
            lean = lean_decoder(model)
            assert lean is not None
            found = decode(model, lean, PROMPTS)
            again = decode(model, lean_decoder(model), PROMPTS)
    assert lean.is_alike
    assert_alike(found, expected)
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize("has_adapter", [True, False])
def test_an_adapter_is_served(has_adapter: bool) -> None:
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]  # of q, k and v not all
    model = get_peft_model(make_model(CONFIGS["qwen 3"]), LoraConfig(r=4, target_modules=targets)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
        with nullcontext() if has_adapter else model.disable_adapter():
            expected = decode(model, None, PROMPTS)
            with skinny_products(model):
                lean = lean_decoder(model)
                assert lean is not None
                found = decode(model, lean, PROMPTS)
    assert lean.is_alike
    assert_alike(found, expected)


def test_many_rows_are_served_too() -> None:
    model = make_model(CONFIGS["qwen 3"])
    prompts = [(2 + row % 60, 3) for row in range(70)]
    with torch.no_grad():
        expected = decode(model, None, prompts)
        with skinny_products(model):
            found = decode(model, lean_decoder(model), prompts)
    assert_alike(found, expected)


def test_another_forward_is_found_out_and_used_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(CONFIGS["llama"])
    usual: Callable[[LlamaMLP, Tensor], Tensor] = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, rows: 1.01 * usual(self, rows))
    with torch.no_grad():
        expected = decode(model, None, PROMPTS)
        with skinny_products(model):
            lean = lean_decoder(model)
            assert lean is not None
            found = decode(model, lean, PROMPTS)
    assert lean.is_alike is False
    assert_alike(found, expected)


def test_a_cache_with_a_window_is_left_to_the_model() -> None:
    model = make_model(MistralConfig(**SIZES, sliding_window=4))
    with torch.no_grad(), skinny_products(model):
        lean = lean_decoder(model)
        assert lean is not None
        decode(model, lean, PROMPTS)
    assert lean.is_alike is None


def test_it_is_not_there_for_what_it_does_not_serve() -> None:
    plain, watched, changed = (make_model(CONFIGS["llama"]) for _ in range(3))
    watched.get_submodule("model.layers.1.mlp").register_forward_hook(lambda *_: None)
    norm = changed.get_submodule("model.norm")
    norm.forward = lambda rows: rows
    adapted = get_peft_model(make_model(CONFIGS["llama"]), LoraConfig(target_modules=["q_proj"], use_dora=True)).eval()
    others: list[nn.Module] = [
        watched,
        changed,
        adapted,
        make_model(CONFIGS["llama"]).bfloat16(),
        make_model(GraniteConfig(**SIZES)),
    ]
    for model in others:
        with skinny_products(model):
            assert lean_decoder(model) is None
    assert lean_decoder(plain) is None, "no skinny products"
    with skinny_products(plain):
        assert lean_decoder(plain) is not None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert lean_decoder(plain) is None
