"""Engines come and go in one process, and leave what is global as it was."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import Phi3Config, Phi3ForCausalLM

from tests.trd_engine.generation.random_models import (
    LORA_RANK,
    MAX_MODEL_LEN,
    SAMPLED,
    STOP_ID,
    assert_sampled_by,
    ids,
    load_model,
    make_requests,
    make_tokenizer,
    write_adapter,
)
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings
from trd_engine.runtime.errors import SpecError


def make_engine(folder: Path) -> VllmGenerator:
    return VllmGenerator(folder, VllmSettings(dtype=torch.float32, max_model_len=MAX_MODEL_LEN, max_num_seqs=8))


@pytest.mark.slow
def test_engines_live_side_by_side_and_outlive_each_other(
    vllm_generator: VllmGenerator, other_model_folder: Path, adapter_folder: Path
) -> None:
    requests = make_requests(6)
    environment, threads, state = dict(os.environ), torch.set_num_threads, torch.get_rng_state()
    teacher = make_engine(other_model_folder)
    assert {name for name in os.environ if os.environ[name] != environment.get(name)} <= {"VLLM_DIST_IDENT"}
    assert torch.set_num_threads is threads
    assert torch.equal(torch.get_rng_state(), state)

    student_before, teacher_before = vllm_generator.generate(requests, SAMPLED), teacher.generate(requests, SAMPLED)
    assert ids(student_before) != ids(teacher_before)
    with pytest.raises(SpecError, match="lora_rank None"):
        teacher.use_adapter(adapter_folder)
    teacher.close()
    assert vllm_generator.generate(requests, SAMPLED) == student_before
    again = make_engine(other_model_folder)
    assert again.generate(requests, SAMPLED) == teacher_before
    assert vllm_generator.generate(requests, SAMPLED) == student_before
    vllm_generator.load_weights(other_model_folder)  # made from a folder without sampling defaults
    assert vllm_generator.generate(requests, SAMPLED) == teacher_before
    again.close()


@pytest.mark.slow
def test_an_adapter_on_fused_layers_answers(tmp_path: Path) -> None:
    """Phi-3 has q, k and v in one layer, and gate and up in another."""
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=64, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=MAX_MODEL_LEN, original_max_position_embeddings=MAX_MODEL_LEN,
        initializer_range=0.3, bos_token_id=0, eos_token_id=STOP_ID, pad_token_id=0,
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    adapter = write_adapter(tmp_path / "model", tmp_path / "adapter", seed=1, targets=targets)
    settings = VllmSettings(dtype=torch.float32, max_model_len=MAX_MODEL_LEN, max_num_seqs=8, lora_rank=LORA_RANK)
    requests = make_requests(6)
    with closing(VllmGenerator(tmp_path / "model", settings)) as engine:
        bare = engine.generate(requests, SAMPLED, with_logprobs=True)
        engine.use_adapter(adapter)
        adapted = engine.generate(requests, SAMPLED, with_logprobs=True)
    assert_sampled_by(load_model(tmp_path / "model"), requests, bare)
    assert_sampled_by(PeftModel.from_pretrained(load_model(tmp_path / "model"), adapter).eval(), requests, adapted)


def test_a_rank_that_vllm_cannot_serve_is_refused(model_folder: Path) -> None:
    with pytest.raises(SpecError, match=r"lora\.rank 600"):
        VllmGenerator(model_folder, VllmSettings(dtype=torch.float32, lora_rank=600))
