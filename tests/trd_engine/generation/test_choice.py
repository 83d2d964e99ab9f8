"""Which engine samples, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, Qwen3Config

from trd_engine.generation.choice import choose_engine
from trd_engine.runtime.errors import DeviceUnavailableError, SpecError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small_heads(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("small-heads")
    Qwen3Config(head_dim=16, architectures=["Qwen3ForCausalLM"]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def unknown_architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("unknown")
    GPT2Config(architectures=["HomegrownForCausalLM"]).save_pretrained(folder)
    return str(folder)


def test_auto_takes_vllm_where_it_serves_the_models(model_folder: Path) -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    assert choose_engine("auto", [str(model_folder)], device=CPU)[0] == "vllm"
    assert choose_engine("vllm", [str(model_folder)], device=CPU)[0] == "vllm"


def test_transformers_on_request(model_folder: Path) -> None:
    assert choose_engine("transformers", [str(model_folder)], device=CPU)[0] == "transformers"


def test_heads_that_vllms_cpu_attention_lacks(model_folder: Path, small_heads: str) -> None:
    engine, reason = choose_engine("auto", [str(model_folder), small_heads], device=CPU)
    assert engine == "transformers"
    assert "heads of 16 dimensions" in reason
    assert small_heads in reason
    with pytest.raises(SpecError, match=r"sampling\.engine = vllm: .*heads of 16 dimensions.*use auto or transformers"):
        choose_engine("vllm", [small_heads], device=CPU)


def test_an_architecture_that_vllm_does_not_know(unknown_architecture: str) -> None:
    engine, reason = choose_engine("auto", [unknown_architecture], device=CPU)
    assert (engine, "does not know HomegrownForCausalLM" in reason) == ("transformers", True)


@pytest.mark.parametrize("requested", ["auto", "vllm"])
def test_a_vllm_for_another_device_is_an_error_on_a_gpu(model_folder: Path, requested: str) -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    with pytest.raises(DeviceUnavailableError, match="runs on cpu, and this run on cuda; repair its installation"):
        choose_engine(requested, [str(model_folder)], device=torch.device("cuda"))


def test_adapters_in_fp32_are_not_for_vllm_on_a_gpu(model_folder: Path) -> None:
    """Its Triton kernels assert fp16 or bf16; without an adapter any dtype is served."""
    pytest.importorskip("vllm", exc_type=ImportError)
    sources, gpu = [str(model_folder)], torch.device("cuda")
    engine, reason = choose_engine("auto", sources, device=gpu, adapter_dtype=torch.float32)
    assert (engine, "no LoRA in fp32" in reason) == ("transformers", True)
    with pytest.raises(SpecError, match="no LoRA in fp32"):
        choose_engine("vllm", sources, device=gpu, adapter_dtype=torch.float32)
    assert choose_engine("vllm", sources, device=CPU, adapter_dtype=torch.float32)[0] == "vllm"
    with pytest.raises(DeviceUnavailableError, match="runs on cpu"):  # only then is the installed one looked at
        choose_engine("auto", sources, device=gpu, adapter_dtype=torch.bfloat16)


def test_without_vllm(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trd_engine.generation.choice.importlib.util.find_spec", lambda name: None)
    assert choose_engine("auto", [str(model_folder)], device=CPU) == ("transformers", "vLLM is not installed")


def test_a_vllm_that_does_not_import(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("trd_engine.generation.vllm.runtime.importlib.import_module", broken)
    engine, reason = choose_engine("auto", [str(model_folder)], device=CPU)
    assert engine == "transformers"
    assert reason == "vllm is installed but does not import: operator torchvision::nms does not exist"
    with pytest.raises(DeviceUnavailableError, match=r"sampling\.engine = auto: vllm is installed but does not import"):
        choose_engine("auto", [str(model_folder)], device=torch.device("cuda"))
