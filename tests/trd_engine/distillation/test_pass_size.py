"""Tokens of a pass if the spec names none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trd_engine.tiny_runs import MODELS
from trd_engine.config import SamplingConfig
from trd_engine.distillation.batching import MIN_TOKENS_CPU, PassTokens, pass_tokens
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.generation.hf.generator import CopyGenerator
from trd_engine.models.loading import load_tokenizer
from trd_engine.training.model_setup import bytes_for_a_pass
from trd_estimate.memory import (
    CONTEXT_BYTES,
    DEFAULT_PASS_TOKENS,
    LOSS_CHUNK_BYTES,
    MAX_TEACHER_PASS_TOKENS,
    RESERVE_BYTES,
    SLEEPING_BYTES,
)

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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * GB))
    # As with a sleeping engine in this process, whose memory torch does not know to be free.
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 79 * GB)


def bytes_free(student: LlamaForCausalLM, dtype: torch.dtype, *, samplers: Any = None, **changes: Any) -> int:
    sampling = SamplingConfig.model_validate(changes.pop("sampling", {}))
    pair = ModelPair(student, changes.pop("teacher", None), Divergence(), dtype, ())
    on_gpu: Any = SimpleNamespace(**vars(pair), device=torch.device("cuda", 0))
    found = bytes_for_a_pass(on_gpu, samplers or SimpleNamespace(weights=None), sampling)
    assert found is not None
    return found


@pytest.mark.usefixtures("gpu")
def test_copies_that_autocast_keeps_are_no_room_for_a_pass() -> None:
    student = make_model(1024, 2, torch.float32)
    num_trained = sum(parameter.numel() for parameter in student.parameters())
    assert bytes_free(student, torch.float32) - bytes_free(student, torch.bfloat16) == 2 * num_trained


@pytest.mark.usefixtures("gpu")
def test_an_engine_takes_what_it_keeps_while_it_sleeps_and_nothing_on_another_gpu() -> None:
    student = make_model(1024, 2).requires_grad_(False)
    num_bytes = sum(t.numel() * t.element_size() for t in (*student.parameters(), *student.buffers()))
    alone = bytes_free(student, torch.bfloat16)
    assert alone == 80 * GB - num_bytes - CONTEXT_BYTES - RESERVE_BYTES - LOSS_CHUNK_BYTES
    itself: Any = SimpleNamespace(model=student)
    assert bytes_free(student, torch.bfloat16, teacher=itself) == alone, "one model"
    other: Any = SimpleNamespace(model=make_model(1024, 2).requires_grad_(False))
    assert bytes_free(student, torch.bfloat16, teacher=other) == alone - num_bytes
    engines: Any = SimpleNamespace(weights=object(), student=object(), teacher=object())
    assert bytes_free(student, torch.bfloat16, samplers=engines) == alone - 2 * SLEEPING_BYTES
    apart = {"placement": "separate"}
    assert bytes_free(student, torch.bfloat16, samplers=engines, sampling=apart) == alone


@pytest.mark.usefixtures("gpu")
def test_copies_for_sampling_stay_in_memory_during_a_pass() -> None:
    folder, on_cpu = str(MODELS / "tiny-student"), torch.device("cpu")
    copy = CopyGenerator(folder, load_tokenizer(folder), device=on_cpu, dtype=torch.float32)
    num_bytes = sum(t.numel() * t.element_size() for t in (*copy.model.parameters(), *copy.model.buffers()))
    student = make_model(1024, 2)
    engines, copies = (SimpleNamespace(weights=object(), student=one, teacher=one) for one in (object(), copy))
    without = bytes_free(student, torch.bfloat16, samplers=engines)
    assert without - bytes_free(student, torch.bfloat16, samplers=copies) == num_bytes > 0


def test_a_model_of_unknown_shape_has_the_default() -> None:
    model = make_model(64, 2)
    model.config.num_experts = 4
    assert tokens(model, 40 * GB) == PassTokens.of_both(DEFAULT_PASS_TOKENS)
