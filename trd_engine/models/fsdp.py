"""Shard one model over several processes by FSDP2, run work on it, and gather it again.

Parameters become shards of their first dimension, in one group for each decoder layer and one for everything else. A
layer's weights are complete only while it computes. The loss needs the head's weight outside the model's own forward
pass, so the root of the sharded modules is a wrapper whose forward pass runs any work: within `ShardedRoot.forward`
the head is complete, and its gradient is reduced like all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from trd_engine.models.loading import TrainedModel, backbone_of, causal_lm_of
from trd_engine.models.lora import STUDENT_ADAPTER
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
        """Gather the weights anew, run `work`, and free them afterwards or after the backward pass.

        FSDP2 alone keeps the root's complete weights after a pass without gradient. It would use them again after an
        update, and the model's parameters would be these instead of the shards.
        """
        sharded = cast(FSDPModule, self)
        sharded.reshard()
        result = self(work)
        if not torch.is_grad_enabled() and not self._keeps_head_full:
            sharded.reshard()
        return result


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
    layers = [module for module in model.modules() if type(module).__name__ in _layer_names(model)]
    for module in (*layers, root):
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
    cast(FSDPModule, root).reshard()


def _layer_names(model: nn.Module) -> set[str]:
    """Return the classes that transformers itself never splits between devices: the decoder layers."""
    return set(causal_lm_of(model)._no_split_modules or ())


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all shards of `tensor` gathered (collective), or `tensor` itself if it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's shard of `tensor`, or `tensor` itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_full_model(model: TrainedModel, world: World) -> TrainedModel | None:
    """Return a plain copy of a sharded model on the CPU in the main process, and None in the others. Collective.

    Tensors are gathered one after another, so that a GPU holds only one full tensor at a time.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        gathered = full_tensor(tensor)
        if world.is_main:
            weights[name] = gathered.cpu()
    if not world.is_main:
        return None
    copy = _without_storage(model)
    copy.load_state_dict(weights, assign=True)
    causal_lm_of(copy).tie_weights()
    return copy


def _without_storage(model: TrainedModel) -> TrainedModel:
    """Return a model of the same architecture on the meta device."""
    causal_lm = causal_lm_of(model)
    with torch.device("meta"):
        blank: PreTrainedModel = AutoModelForCausalLM.from_config(causal_lm.config, dtype=causal_lm.dtype)
        blank.generation_config = causal_lm.generation_config
        if not isinstance(model, PeftModel):
            return blank
        # PEFT writes the base's local path into the settings that it gets.
        settings = {n: dataclasses.replace(own, base_model_name_or_path=None) for n, own in model.peft_config.items()}
        copy = cast(PeftModel, get_peft_model(blank, settings[STUDENT_ADAPTER]))
        for name in settings.keys() - {STUDENT_ADAPTER}:
            copy.add_adapter(name, settings[name])
        for name, own in model.peft_config.items():
            copy.peft_config[name].base_model_name_or_path = own.base_model_name_or_path
        return copy
