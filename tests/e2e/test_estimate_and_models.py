"""The dry run's arithmetic beside real models: what an adapter has, and what a forward pass keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from contract.job_spec import JobSpec
from service.models.service import read_shape
from trd_estimate.hardware import CPU
from trd_estimate.memory import Models, phase_memory
from trd_estimate.shape import ModelShape

MODELS = Path(__file__).parents[2] / "testbed" / "models"
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOKENS = 256


@pytest.fixture(params=["tiny-student", "tiny-teacher"])
def folder(request: pytest.FixtureRequest) -> Path:
    return MODELS / str(request.param)


@pytest.fixture
def shape(folder: Path) -> ModelShape:
    found = read_shape(folder)
    assert found is not None
    return found


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("targets", [LAYERS, ("q_proj", "down_proj")])
def test_an_adapters_parameters_are_pefts(shape: ModelShape, model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=list(targets)))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.num_adapter_parameters(8, targets) == trained


def kept_bytes(model: PreTrainedModel) -> int:
    """Return the bytes that the layers' forward pass keeps for its backward pass, each storage once, without the
    weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held: one that is let go of may lend its address to another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(torch.ones(1, TOKENS, dtype=torch.long)).last_hidden_state
    assert hidden.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_a_forward_pass_keeps(shape: ModelShape, model: PreTrainedModel, precision: str) -> None:
    sampling = {"engine": "transformers", "max_prompt_tokens": 1, "max_new_tokens": TOKENS - 1}
    body = {"mode": "opd", "student": "s", "teacher": "t", "dataset": "ds_1", "lora": None, "precision": precision}
    optim = {"batch_size": 1, "gradient_checkpointing": False}
    spec = JobSpec.model_validate({**body, "sampling": sampling, "optim": optim}).resolved()
    found = phase_memory(spec, Models(shape, shape), CPU)["training"]["activations"]
    is_half = precision == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        kept = kept_bytes(model)
    if is_half:  # the estimate counts the cast copies among the weights
        kept -= 2 * sum(layer.weight.numel() for layer in model.model.modules() if isinstance(layer, nn.Linear))
    assert found == pytest.approx(kept, rel=0.1)
