"""Both generators on the random models, one vLLM engine for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tests.trd_engine.generation.random_models import (
    LORA_RANK,
    MAX_MODEL_LEN,
    load_model,
    write_adapter,
    write_model,
)
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "random", seed=0)


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape, other weights, and sampling defaults that no generator may mix with a request's."""
    folder = write_model(tmp_path_factory.mktemp("models") / "other", seed=1)
    opinions = GenerationConfig(do_sample=True, temperature=0.01, top_k=1, repetition_penalty=5.0, max_new_tokens=3)
    opinions.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(model_folder, tmp_path_factory.mktemp("adapters") / "first", seed=2)


@pytest.fixture(scope="session")
def other_adapter_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(model_folder, tmp_path_factory.mktemp("adapters") / "second", seed=3)


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_folder)
    return loaded


@pytest.fixture(scope="session")
def reference_model(model_folder: Path) -> PreTrainedModel:
    """The model for plain forward passes; no test changes it."""
    return load_model(model_folder)


@pytest.fixture
def adapted_model(model_folder: Path, adapter_folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(load_model(model_folder), adapter_folder).eval()


@pytest.fixture
def transformers_generator(model_folder: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[TransformersGenerator]:
    generator = TransformersGenerator(load_model(model_folder), tokenizer)
    yield generator
    generator.close()


@pytest.fixture(scope="session")
def vllm_engine(model_folder: Path) -> Iterator[VllmGenerator]:
    pytest.importorskip("vllm", exc_type=ImportError)
    settings = VllmSettings(dtype=torch.float32, max_model_len=MAX_MODEL_LEN, lora_rank=LORA_RANK, max_num_seqs=32)
    generator = VllmGenerator(model_folder, settings)
    yield generator
    generator.close()


@pytest.fixture
def vllm_generator(vllm_engine: VllmGenerator, model_folder: Path) -> Iterator[VllmGenerator]:
    """One engine for all tests, back at its first weights and without an adapter after each."""
    yield vllm_engine
    vllm_engine.use_adapter(None)
    vllm_engine.load_weights(model_folder)
