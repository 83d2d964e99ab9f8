"""Shard one model over several processes by FSDP2, run work on it, and gather it again.

Parameters become shards of their first dimension, in one group for each decoder layer and one for everything else. A
layer's weights are complete only while it computes. The loss needs the head's weight outside the model's own forward
pass, so the root of the sharded modules is a wrapper whose forward pass runs any work: within `ShardedRoot.forward`
the head is complete, and its gradient is reduced like all others.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from trd_engine.models.loading import TrainedModel, backbone_of, causal_lm_of
from trd_engine.models.lora import STUDENT_ADAPTER, merged_weights
from trd_engine.models.sharded_loading import filled_parameters
from trd_engine.runtime.distributed import World

T = TypeVar("T")
RunUnsharded = Callable[[Callable[[], Any]], Any]
"""Runs some work while a model's weights outside its layers are complete, and returns the result."""


def run_directly(work: Callable[[], T]) -> T:
    """Run work on a model that is not sharded."""
    return work()


class ShardedRoot(nn.Module):
    """The outermost of a model's sharded modules; see the module's docstring."""

    def __init__(self, model: TrainedModel, *, keeps_head_full: bool) -> None:
        """`keeps_head_full`: after a pass without gradient the head stays complete until the next pass. A teacher
        needs this: the loss reads its head after its pass."""
        super().__init__()
        self.model = model
        self._keeps_head_full = keeps_head_full

    def forward(self, work: Callable[[], Any]) -> Any:
        """Return the result of `work`, during which the weights outside the layers are complete."""
        return work()

    def run_unsharded(self, work: Callable[[], Any]) -> Any:
        """Gather the weights again, run `work`, and free them afterwards or after the backward pass.

        FSDP2 alone keeps the root's complete weights after a pass without gradient. It would use them again after an
        update, and the model's parameters would be these instead of the shards.
        """
        sharded = cast(FSDPModule, self)
        sharded.reshard()
        result = self(work)
        if not torch.is_grad_enabled() and not self._keeps_head_full:
            sharded.reshard()
        return result

    def free_full_weights(self) -> None:
        """Free the weights that `keeps_head_full` keeps, until the next pass."""
        cast(FSDPModule, self).reshard()


def shard(
    model: TrainedModel, world: World, compute_dtype: torch.dtype, *, keeps_head_full: bool = False
) -> ShardedRoot:
    """Shard `model` in place among the processes; use it only within the returned root's `run_unsharded` from then on.

    Weights keep their dtype. With a compute dtype below fp32, passes use it, and gradients are summed in fp32.
    """
    device_type = next(model.parameters()).device.type
    options: dict[str, Any] = {"mesh": init_device_mesh(device_type, (world.size,))}
    if compute_dtype != torch.float32:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    root = ShardedRoot(model, keeps_head_full=keeps_head_full)
    layer_names = causal_lm_of(model)._no_split_modules or ()  # that transformers never splits between devices
    layers = [module for module in model.modules() if type(module).__name__ in layer_names]
    for module in (*layers, root):
        with filled_parameters(module):
            fully_shard(module, **options)
        # The loss weighs by the tokens of all processes, so gradients are added, not averaged.
        sharded = cast(FSDPModule, module)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    _create_unsharded_parameters(root, model)
    return root


@torch.no_grad()
def _create_unsharded_parameters(root: ShardedRoot, model: TrainedModel) -> None:
    """Create the unsharded parameters now, while `requires_grad` is right for each.

    FSDP2 creates them at the first pass and reads `requires_grad` only then. In that pass the adapter may be disabled,
    and PEFT then marks none of its parameters as trained.
    """
    token_id_11 = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    root.run_unsharded(lambda: backbone_of(model)(input_ids=token_id_11, use_cache=False))
    root.free_full_weights()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all shards of `tensor` gathered (collective), or `tensor` itself if it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's shard of `tensor`, or `tensor` itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gather(tensors: Iterable[tuple[str, Tensor]], world: World) -> dict[str, Tensor]:
    """Return the complete tensors on the CPU in the main process, and none in the others. Collective.

    Tensors are gathered one after another, so that a GPU holds only one full tensor at a time.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors:
        complete = full_tensor(tensor)
        if world.is_main:
            gathered[name] = complete.cpu()
    return gathered


def save_adapter(model: PeftModel, folder: Path, adapter: str, world: World) -> None:
    """Write one adapter to `folder`, where PEFT puts it, gathering no other weight. Collective."""
    own = [(name, t) for name, t in model.state_dict().items() if ".lora_" in name and f".{adapter}." in name]
    weights = _gather(own, world)
    if world.is_main:
        settings = model.peft_config[adapter]
        # PEFT keeps the names in a set, whose order, and with it the file, would be another one in every process.
        settings.target_modules = sorted(settings.target_modules)  # type: ignore[attr-defined]
        model.save_pretrained(str(folder), selected_adapters=[adapter], state_dict=weights)


def gather_full_model(model: TrainedModel, world: World, dtype: torch.dtype | None = None) -> TrainedModel | None:
    """Return a plain copy of a sharded model on the CPU in the main process, and None in the others. Collective.

    With `dtype` its parameters are converted, except those that the architecture keeps in fp32.
    """
    weights = _gather(_converted(model, model.state_dict().items(), dtype), world)
    return _with_weights(_without_storage(model), weights) if world.is_main else None


def merged_model(model: PeftModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """Return a copy on the CPU of a model that is not sharded, with its adapter merged; `dtype` as in
    `gather_full_model`."""
    blank = _without_storage(causal_lm_of(model))
    # One after another: beside a large model a GPU has no room for a second one.
    weights = {name: tensor.cpu() for name, tensor in _converted(blank, merged_weights(model), dtype)}
    merged = _with_weights(blank, weights)
    assert isinstance(merged, PreTrainedModel)
    return merged


def _converted(
    model: TrainedModel, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield each of the model's weights by name, one copy at a time."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    kept = causal_lm_of(model)._keep_in_fp32_modules_strict or ()
    for name, tensor in weights:
        is_kept = dtype is None or name not in parameters or any(part in name for part in kept)
        yield name, tensor if is_kept else tensor.to(dtype)


def _with_weights(blank: TrainedModel, weights: Mapping[str, Tensor]) -> TrainedModel:
    blank.load_state_dict(weights, assign=True)
    causal_lm_of(blank).tie_weights()
    return blank


def _without_storage(model: TrainedModel) -> TrainedModel:
    """Return a model of the same architecture on the meta device."""
    causal_lm = causal_lm_of(model)
    with torch.device("meta"):
        # A copy: a model's dtype is written into its settings when it is made, and when it is saved.
        config = copy.deepcopy(causal_lm.config)
        blank: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=causal_lm.dtype)
        blank.generation_config = causal_lm.generation_config
        if hasattr(causal_lm, "_weight_conversions"):  # how transformers names the weights on the disk
            blank._weight_conversions = causal_lm._weight_conversions
        if not isinstance(model, PeftModel):
            return blank
        # PEFT writes the base's local path into the settings that it gets.
        settings = {n: dataclasses.replace(own, base_model_name_or_path=None) for n, own in model.peft_config.items()}
        whole = cast(PeftModel, get_peft_model(blank, settings[STUDENT_ADAPTER]))
        for name in settings.keys() - {STUDENT_ADAPTER}:
            whole.add_adapter(name, settings[name])
        for name, own in model.peft_config.items():
            whole.peft_config[name].base_model_name_or_path = own.base_model_name_or_path
        return whole
