"""Engines come and go in one process, and leave what is global as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.trd_engine.generation.random_models import MAX_MODEL_LEN, SAMPLED, ids, make_requests
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings
from trd_engine.runtime.errors import SpecError


def make_engine(folder: Path) -> VllmGenerator:
    return VllmGenerator(folder, VllmSettings(dtype=torch.float32, max_model_len=MAX_MODEL_LEN, max_num_seqs=8))


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
    vllm_generator.load_weights(other_model_folder)  # made from a folder without sampling defaults of its own
    assert vllm_generator.generate(requests, SAMPLED) == teacher_before
    again.close()


def test_a_rank_that_vllm_cannot_serve_is_refused(model_folder: Path) -> None:
    with pytest.raises(SpecError, match=r"lora\.rank 600"):
        VllmGenerator(model_folder, VllmSettings(dtype=torch.float32, lora_rank=600))
