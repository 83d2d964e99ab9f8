"""Tokens of a pass where the spec names none."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trd_engine.distillation.batching import DEFAULT_MICRO_BATCH_TOKENS, MIN_TOKENS_CPU, default_pass_tokens

CPU = torch.device("cpu")


def make_model(hidden: int, num_layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=num_layers, vocab_size=8)
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_larger_models_read_fewer_tokens_a_pass() -> None:
    sizes = [default_pass_tokens(make_model(*shape), CPU) for shape in ((64, 2), (576, 30), (1024, 40), (8192, 80))]
    assert sizes[0] == DEFAULT_MICRO_BATCH_TOKENS > sizes[1] > sizes[2] > sizes[3] == MIN_TOKENS_CPU


def test_accelerators_and_recomputed_layers_read_many() -> None:
    model = make_model(8192, 80)
    assert default_pass_tokens(model, torch.device("cuda")) == DEFAULT_MICRO_BATCH_TOKENS
    model.gradient_checkpointing_enable()
    assert default_pass_tokens(model, CPU) == DEFAULT_MICRO_BATCH_TOKENS
