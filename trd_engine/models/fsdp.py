"""One model over several processes by FSDP2: how it is divided, entered, and put together again.

Parameters become shards of their first dimension, a group for each decoder layer and one for the rest. A layer's
weights are whole only while it computes. The loss needs the head's weight outside the model's own forward pass, so
the root of the sharded modules is a wrapper whose forward pass is any work at all: within `ShardedRoot.forward` the
head is whole, and its gradient takes the way of all others.
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
Enter = Callable[[Callable[[], Any]], Any]
"""Does some work where a model's weights are whole, and gives its result."""


def directly(work: Callable[[], T]) -> T:
    """How a model that is not divided is entered."""
    return work()


class ShardedRoot(nn.Module):
    """The outermost of a model's sharded modules; see the module's docstring."""

    def __init__(self, model: TrainedModel, *, stays_whole: bool) -> None:
        """`stays_whole`: after a pass without gradient, the head is whole until the next pass: a teacher's, which
        the loss reads then."""
        super().__init__()
        self.model = model
        self._stays_whole = stays_whole

    def forward(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, for which the weights outside the layers are whole."""
        return work()

    def enter(self, work: Callable[[], Any]) -> Any:
        """The same, with weights that are put together anew and, after it or after the backward pass, let go.

        FSDP2 alone leaves the root's whole after a pass without gradient. It would go on with them after an update,
        and whoever asked the model for its parameters would get them instead of the shards.
        """
        sharded = cast(FSDPModule, self)
        sharded.reshard()
        result = self(work)
        if not torch.is_grad_enabled() and not self._stays_whole:
            sharded.reshard()
        return result


def shard(model: TrainedModel, world: World, compute_dtype: torch.dtype, *, stays_whole: bool = False) -> ShardedRoot:
    """Divide `model` in place among the processes; all of it is then to be used within the returned root's `enter`.

    Weights keep their dtype; below fp32, passes see them in the compute dtype, and gradients are summed in fp32.
    """
    device_type = next(model.parameters()).device.type
    options: dict[str, Any] = {"mesh": init_device_mesh(device_type, (world.size,))}
    if compute_dtype != torch.float32:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    root = ShardedRoot(model, stays_whole=stays_whole)
    layers = [module for module in model.modules() if type(module).__name__ in _layer_names(model)]
    for module in (*layers, root):
        fully_shard(module, **options)
        # The loss weighs by the tokens of all processes: gradients are to be added, not averaged.
        sharded = cast(FSDPModule, module)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    _make_whole_once(root, model)
    return root


@torch.no_grad()
def _make_whole_once(root: ShardedRoot, model: TrainedModel) -> None:
    """Have the whole parameters made now, while each says rightly whether it is trained.

    FSDP2 makes them at the first pass and asks only then; that pass may be one with the adapter switched off,
    during which PEFT says that nothing of it is trained.
    """
    token_id_11 = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    root.enter(lambda: backbone_of(model)(input_ids=token_id_11, use_cache=False))
    cast(FSDPModule, root).reshard()


def _layer_names(model: nn.Module) -> set[str]:
    """Classes that transformers itself never splits between devices: the decoder layers."""
    return set(causal_lm_of(model)._no_split_modules or ())


def whole(tensor: Tensor) -> Tensor:
    """All shards of `tensor` put together (collective), or itself where it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, or the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def put_together(model: TrainedModel, world: World) -> TrainedModel | None:
    """A plain copy on the CPU of a sharded model, in the main process; None in the others. Collective.

    Tensor after tensor, so that a GPU holds one whole tensor at a time.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        gathered = whole(tensor)
        if world.is_main:
            weights[name] = gathered.cpu()
    if not world.is_main:
        return None
    copy = _blank(model)
    copy.load_state_dict(weights, assign=True)
    causal_lm_of(copy).tie_weights()
    return copy


def _blank(model: TrainedModel) -> TrainedModel:
    """The same architecture without any storage."""
    causal_lm = causal_lm_of(model)
    with torch.device("meta"):
        blank: PreTrainedModel = AutoModelForCausalLM.from_config(causal_lm.config, dtype=causal_lm.dtype)
        blank.generation_config = causal_lm.generation_config
        if not isinstance(model, PeftModel):
            return blank
        # PEFT writes the base's local path into the settings that it is given.
        settings = {n: dataclasses.replace(own, base_model_name_or_path=None) for n, own in model.peft_config.items()}
        copy = cast(PeftModel, get_peft_model(blank, settings[STUDENT_ADAPTER]))
        for name in settings.keys() - {STUDENT_ADAPTER}:
            copy.add_adapter(name, settings[name])
        for name, own in model.peft_config.items():
            copy.peft_config[name].base_model_name_or_path = own.base_model_name_or_path
        return copy
