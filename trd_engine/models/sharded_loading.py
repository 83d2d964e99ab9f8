"""Loads a model of which no process ever holds all weights.

transformers makes a model on the meta device and then reads its tensors, of sharded ones only this process's rows. The
shards wait beside the model, whose parameters have no memory, until FSDP shards them module by module: by then adapters
are in place. At any time a process holds its share of the model and the weights of one module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from trd_engine.runtime.distributed import World

_SHARD = "loaded_shard"
"""Attribute of a parameter without memory: this process's rows, on the CPU."""


@contextmanager
def sharded_loading(world: World) -> Iterator[None]:
    """Within the block, models that transformers loads have sharded tensors as parameters, on the CPU."""
    mesh = init_device_mesh("cpu", (world.size,))
    load = PreTrainedModel._load_pretrained_model

    def load_sharded(model: PreTrainedModel, *arguments: Any, **options: Any) -> Any:
        _replace_parameters(model, lambda p: distribute_tensor(p, mesh, [Shard(0)], src_data_rank=None))
        return load(model, *arguments, **options)

    # Its loader reads the shards of sharded tensors, but lets only its own FSDP plans make them.
    with patch.object(PreTrainedModel, "_load_pretrained_model", staticmethod(load_sharded)):
        yield


def set_shards_apart(model: nn.Module, device: torch.device) -> None:
    """Replace sharded parameters by ones on `device` that have shape and dtype, but no memory."""

    def placeholder(parameter: Tensor) -> Tensor:
        return torch.empty((), dtype=parameter.dtype, device=device).expand(parameter.shape)

    _replace_parameters(model, placeholder, keeps_shard=True)


def _replace_parameters(model: nn.Module, replacement: Any, *, keeps_shard: bool = False) -> None:
    """Replace each parameter that has rows; tied ones stay tied."""
    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 0:
                continue
            if id(parameter) not in replaced:
                new = nn.Parameter(replacement(parameter.detach()), requires_grad=parameter.requires_grad)
                if keeps_shard:
                    assert isinstance(parameter, DTensor)
                    setattr(new, _SHARD, parameter.to_local().detach())
                replaced[id(parameter)] = new
            setattr(module, name, replaced[id(parameter)])


@contextmanager
def filled_parameters(module: nn.Module) -> Iterator[None]:
    """Give the module's parameters memory for the block, in which FSDP shards them; then fill the shards."""
    shards: dict[int, Tensor] = {}
    for parameter in module.parameters():
        if hasattr(parameter, _SHARD):
            shards[id(parameter)] = getattr(parameter, _SHARD)
            delattr(parameter, _SHARD)
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    places = [
        (owner, name, shards[id(parameter)])
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if id(parameter) in shards
    ]
    del shards
    yield
    with torch.no_grad():
        for owner, name, shard in places:
            sharded = getattr(owner, name)
            assert isinstance(sharded, DTensor)
            sharded.to_local().copy_(shard)
