"""LoRA by PEFT: switch adapters on and off, and merge weights without changing the live ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from trd_engine.config import LoraConfig
from trd_engine.models.loading import causal_lm_of
from trd_engine.runtime.errors import SpecError

STUDENT_ADAPTER = "default"
"""PEFT's name for a model's first adapter, with which saved folders have no subfolder."""
TEACHER_ADAPTER = "teacher"
"""A second adapter on the same base: the teacher's, if it is not frozen at step 0."""

AUTO_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers that the paper adapts, by their names in most model families."""


def add_adapter(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PeftModel:
    """Return the model with a fresh adapter in fp32, its base frozen. The adapter starts as the identity (B = 0).

    Raises `SpecError` if no layer but the output head has one of the target names.
    """
    # Not the head: the loss reads its weight alone, and an adapter on it would never be trained.
    head = model.get_output_embeddings()
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]
    linear_names = {name.rsplit(".", 1)[-1] for name in layers}
    wanted = list(AUTO_TARGETS) if config.target_modules == "auto" else config.target_modules
    targets = [name for name in wanted if name in linear_names]
    missing = [] if config.target_modules == "auto" and targets else [n for n in wanted if n not in linear_names]
    if missing or not targets:
        raise SpecError(
            f"lora.target_modules = {missing}: the student has no such linear layer; it has {sorted(linear_names)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(
            model,
            PeftLoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT scales by any number
                lora_dropout=config.dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
            autocast_adapter_dtype=True,
        )


@torch.no_grad()
def add_teacher_adapter(model: PeftModel) -> None:
    """Add a second adapter, a copy of the student's current one, which is never trained."""
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(TEACHER_ADAPTER, replace(model.peft_config[STUDENT_ADAPTER]))
    model.set_adapter(STUDENT_ADAPTER)  # which also stops gradients of the other one
    for teacher, student in adapter_pairs(model).values():
        teacher.copy_(student)


def adapter_pairs(model: PeftModel) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Return each parameter of the teacher's adapter, by name, with that of the student's."""
    parameters = dict(model.named_parameters())
    return {
        name: (parameter, parameters[name.replace(f".{TEACHER_ADAPTER}.", f".{STUDENT_ADAPTER}.")])
        for name, parameter in parameters.items()
        if ".lora_" in name and f".{TEACHER_ADAPTER}." in name
    }


@contextmanager
def answering_with(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """Within the block, use that adapter of the model; None: its step-0 weights.

    So a student is its own teacher without a second copy.
    """
    assert isinstance(model, PeftModel)
    if adapter is None:
        with model.disable_adapter():
            yield
    elif adapter == model.active_adapter:
        yield
    else:
        before = model.active_adapter
        model.set_adapter(adapter, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter(before)


@torch.no_grad()
def merged_state_dict(model: PeftModel) -> dict[str, Tensor]:
    """Return the base model's weights with the adapter added, under the base model's own names.

    Copies only the adapted layers. PEFT's merge and unmerge in place would leave rounding errors
    in the live weights, and a run would no longer be the same with and without a checkpoint.
    """
    base = causal_lm_of(model)
    merged: dict[str, Tensor] = {}
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    for key, value in base.state_dict(keep_vars=True).items():
        if ".lora_" in key:
            continue
        if ".base_layer." not in key:
            merged[key] = value.detach()
            continue
        layer, _, leaf = key.partition(".base_layer.")
        delta = adapted[layer].get_delta_weight(STUDENT_ADAPTER) if leaf == "weight" else None  # type: ignore[attr-defined]
        merged[f"{layer}.{leaf}"] = value.detach() if delta is None else (value + delta).to(value.dtype)
    return merged
