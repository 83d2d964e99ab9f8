"""Tokens of a pass if the spec names none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trd_engine.distillation.batching import MIN_TOKENS_CPU, PassTokens, pass_tokens
from trd_engine.generation.weight_sync import BorrowedWeights
from trd_engine.runtime.distributed import ALONE
from trd_engine.training.model_setup import bytes_for_a_pass
from trd_estimate.memory import DEFAULT_PASS_TOKENS, MAX_TEACHER_PASS_TOKENS

GB = 10**9


def make_model(hidden: int, num_layers: int, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    config = LlamaConfig(hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=num_layers, vocab_size=8)
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(dtype)


def tokens(model: LlamaForCausalLM, free_bytes: int | None, wanted: int | None = None) -> PassTokens:
    return pass_tokens(wanted, model, make_model(1024, 4), torch.bfloat16, free_bytes)


def test_larger_models_read_fewer_tokens_a_pass_on_a_cpu() -> None:
    found = [tokens(make_model(*shape), None) for shape in ((64, 2), (576, 30), (1024, 40), (8192, 80))]
    assert all(most.student == most.teacher for most in found)
    sizes = [most.student for most in found]
    assert sizes[0] == DEFAULT_PASS_TOKENS > sizes[1] > sizes[2] > sizes[3] == MIN_TOKENS_CPU
    model = make_model(8192, 80)
    model.gradient_checkpointing_enable()
    assert tokens(model, None).student == DEFAULT_PASS_TOKENS, "recomputed layers keep little"


def test_passes_on_a_gpu_are_as_large_as_the_memory_allows() -> None:
    model = make_model(4096, 36)
    model.gradient_checkpointing_enable()
    plenty, scarce, none = (tokens(model, num * GB) for num in (40, 2, 0))
    assert plenty == PassTokens(DEFAULT_PASS_TOKENS, MAX_TEACHER_PASS_TOKENS)
    # Each layer's input, one layer whole (6 + 5 + 4 + 4 * 2 hidden sizes), and the hidden states of the loss.
    assert scarce.student == 2 * GB // ((36 + 23 + 1) * 4096 * 2) < scarce.teacher
    assert none == PassTokens(1, 1), "one sequence at a time"
    trained = make_model(
        4096, 36, torch.float32
    )  # in full on one device: autocast leaves what is between layers in fp32
    trained.gradient_checkpointing_enable()
    assert tokens(trained, 2 * GB).student == 2 * GB // ((36 * 2 + 23 + 4 * 2 + 1 + 2) * 4096 * 2)
    assert tokens(model, 2 * GB, wanted=300) == PassTokens(300, 300), "the spec's number holds for either"


def test_copies_that_autocast_keeps_are_no_room_for_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(total_memory=80 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    student = make_model(1024, 2, torch.float32)
    num_trained = sum(parameter.numel() for parameter in student.parameters())
    samplers: Any = SimpleNamespace(weights=BorrowedWeights(), student=None)

    def free(dtype: torch.dtype) -> int:
        models: Any = SimpleNamespace(device=torch.device("cuda", 0), student=student, world=ALONE, compute_dtype=dtype)
        found = bytes_for_a_pass(models, samplers)
        assert found is not None
        return found

    assert free(torch.float32) - free(torch.bfloat16) == 2 * num_trained


def test_a_model_of_unknown_shape_has_the_default() -> None:
    model = make_model(64, 2)
    model.config.num_experts = 4
    assert tokens(model, 40 * GB) == PassTokens.of_both(DEFAULT_PASS_TOKENS)
