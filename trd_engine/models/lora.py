"""LoRA by PEFT: switch adapters on and off, and merge weights without changing the live ones."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trd_engine.config import LoraConfig
from trd_engine.models.loading import causal_lm_of
from trd_engine.runtime.errors import ModelRefusedError, SpecError

STUDENT_ADAPTER = "default"
"""PEFT's name for a model's first adapter, with which saved folders have no subfolder."""
TEACHER_ADAPTER = "teacher"
"""A second adapter on the same base: the teacher's, if it is not frozen at step 0."""
_IN_A_BLOCK = re.compile(r"\.\d+\.")
"""Blocks are numbered, whatever they are called: ``model.layers.0.``, ``transformer.h.0.``."""
_ROUTERS = {"gate", "router", "shared_expert_gate"}
"""Layers that choose experts: small, and an adapter on them would change which experts learn."""
_READ_DIRECTLY = {"out_proj", "x_proj", "dt_proj"}
"""Layers of a state-space mixer whose weights its kernels read past an adapter."""


@dataclass(frozen=True)
class AdapterCoverage:
    """Which weights of a model's blocks have an adapter."""

    layers: tuple[str, ...]
    """Names of the adapted layers."""
    left_out: tuple[str, ...]
    """Names of the matrices without one, the largest first."""
    share: float
    """Share of the weights in matrices."""


def add_adapter(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PeftModel:
    """Return the model with a fresh adapter in fp32, its base frozen. The adapter starts as the identity (B = 0).

    Raises `SpecError` if no layer but the output head has one of the target names.
    """
    # Not the head: the loss reads its weight alone, and an adapter on it would never be trained.
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    layers = {n: m for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    linear_names = {name.rsplit(".", 1)[-1] for name in layers}
    is_auto = config.target_modules == "auto"
    targets = _block_layers(layers, modules) if is_auto else list(config.target_modules)
    missing = [name for name in targets if name not in linear_names]
    if missing or not targets:
        raise SpecError(
            f"lora.target_modules = {missing or config.target_modules}: the student has no such linear layer; it has "
            f"{sorted(linear_names)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(
            model,
            PeftLoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT scales by any number
                lora_dropout=config.dropout,
                target_modules=targets,
                fan_in_fan_out=any(isinstance(layers[n], Conv1D) for n in layers if n.rsplit(".", 1)[-1] in targets),
                task_type="CAUSAL_LM",
            ),
            autocast_adapter_dtype=True,
        )
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            layer._cast_input_dtype = _cast_outside_autocast  # type: ignore[method-assign, assignment]
    return cast(PeftModel, adapted)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Return the model with the adapter in a folder, in eval mode; raise `ModelRefusedError` unless all of it fits."""
    try:
        with warnings.catch_warnings():
            # PEFT leaves layers that the file has no weights for as they are without an adapter.
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, UserWarning, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelRefusedError(f"the adapter in {folder} does not fit its base model: {reason:.500}") from error


def _cast_outside_autocast(inputs: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Replace PEFT's cast of a layer's inputs to the adapter's fp32.

    Autocast casts them back to bf16 for the product, with the same result: the copy, twice as large as the inputs and
    kept for the backward pass, would serve nothing. A pass that is computed again in the backward pass restores
    autocast, so that this decides the same there.
    """
    if inputs is None or inputs.dtype == dtype or torch.is_autocast_enabled(inputs.device.type):
        return inputs
    return inputs.to(dtype)


def _block_layers(layers: Mapping[str, nn.Module], modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the linear layers in the model's blocks, fused ones included."""
    names = set()
    for path in filter(_IN_A_BLOCK.search, layers):
        parent, _, name = path.rpartition(".")
        is_read_directly = name in _READ_DIRECTLY and hasattr(modules[parent], "conv1d")
        if name not in _ROUTERS and not is_read_directly:
            names.add(name)
    return sorted(names)


def adapter_coverage(model: PeftModel) -> AdapterCoverage:
    """Return what the student's adapter covers of the matrices in the model's blocks."""
    with_adapter: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for path, parameter in causal_lm_of(model).named_parameters():
        if parameter.ndim < 2 or ".lora_" in path or not _IN_A_BLOCK.search(path):
            continue
        layer = path.removesuffix(".weight").removesuffix(".base_layer")
        found = with_adapter if ".base_layer." in path else without
        found[layer.rsplit(".", 1)[-1]] += parameter.numel()
    total = with_adapter.total() + without.total()
    left_out = tuple(name for name, _ in without.most_common())
    return AdapterCoverage(tuple(sorted(with_adapter)), left_out, with_adapter.total() / max(total, 1))


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
def merged_weights(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the base model's weights with the adapter added, under the base model's own names.

    Copies only the adapted weights, each when it is asked for. PEFT's merge and unmerge in place would leave rounding
    errors in the live weights, and a run would no longer be the same with and without a checkpoint.
    """
    base = causal_lm_of(model)
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    for key, value in base.state_dict().items():
        if ".lora_" in key:
            continue
        layer, _, leaf = key.rpartition(".")
        while layer.endswith(".base_layer"):  # fused experts have a wrapper for each of their weights, one in another
            layer = layer.removesuffix(".base_layer")
            if leaf == getattr(adapted[layer], "parameter_name", "weight"):
                delta: Tensor = adapted[layer].get_delta_weight(STUDENT_ADAPTER)  # type: ignore[attr-defined]
                value = (value + delta).to(value.dtype)
        yield f"{layer}.{leaf}" if layer else leaf, value
