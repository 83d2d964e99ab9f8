"""What several processes do with the models that they share; forked by `tests/trd_engine/models/test_fsdp.py`."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import core_model_loading

from trd_engine.config import LoraConfig
from trd_engine.models import fsdp
from trd_engine.models.fsdp import full_tensor, gather_full_model, local_shard, save_adapter, shard
from trd_engine.models.loading import TrainedModel, load_model
from trd_engine.models.lora import STUDENT_ADAPTER, add_adapter, add_teacher_adapter
from trd_engine.runtime.distributed import World, open_world
from trd_engine.training.checkpoints.state import restore_student, write_student

CPU = torch.device("cpu")
LORA = LoraConfig(rank=4, alpha=8)


VARIANTS = (
    ("plain", torch.float32, False),
    ("plain", torch.bfloat16, True),
    ("tied", torch.bfloat16, False),
    ("tied", torch.float32, True),
    ("experts", torch.float32, False),
)
"""Model, dtype in memory, and whether it has adapters."""


def share(folder: Path) -> None:
    """Assert that models that are sharded while they load equal those that are loaded whole and sharded then."""
    with open_world(2) as world:
        for name, dtype, is_lora in VARIANTS:
            _compare(folder / name, dtype, world, is_lora=is_lora)
        _gather(folder, world)
        peaks = {n: _peak(lambda n=n: _loaded(folder / n, torch.float32, world)) for n in ("plain", "experts")}  # type: ignore[misc]
        if world.is_main:
            (folder / "peaks.json").write_text(json.dumps(peaks), encoding="utf-8")


def _loaded(folder: Path, dtype: torch.dtype, world: World, *, is_lora: bool = False) -> TrainedModel:
    model: TrainedModel = load_model(str(folder), dtype=dtype, device=CPU, world=world)
    if is_lora:
        model = add_adapter(model, LORA, seed=0)
        add_teacher_adapter(model)
    shard(model, world, dtype)
    return model


def _compare(folder: Path, dtype: torch.dtype, world: World, *, is_lora: bool) -> None:
    ours = _loaded(folder, dtype, world, is_lora=is_lora)
    theirs: TrainedModel = load_model(str(folder), dtype=dtype, device=CPU)
    if is_lora:
        theirs = add_adapter(theirs, LORA, seed=0)
        add_teacher_adapter(theirs)
    shard(theirs, world, dtype)
    one, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert one.keys() == other.keys()
    for name, parameter in one.items():
        assert isinstance(parameter, DTensor)
        assert (parameter.dtype, parameter.requires_grad) == (other[name].dtype, other[name].requires_grad), name
        assert torch.equal(local_shard(parameter), local_shard(other[name])), name
    for (name, mine), (_, whole) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert torch.equal(mine, whole), name


def _peak(work: Callable[[], object]) -> int:
    """Return the most bytes of all tensors in this process, counted before each weight that is set or sharded."""
    counts, set_weight, make_shards = [0], core_model_loading.set_param_for_module, fsdp.fully_shard
    gc.collect()
    gc.freeze()  # what exists is not counted

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            counts.append(_num_bytes())
            result = function(*arguments, **options)
            counts.append(_num_bytes())
            return result

        return counted

    core_model_loading.set_param_for_module = counting(set_weight)
    fsdp.fully_shard = counting(make_shards)
    try:
        kept = work()
    finally:
        core_model_loading.set_param_for_module, fsdp.fully_shard = set_weight, make_shards
        gc.unfreeze()
    del kept
    return max(counts)


def _num_bytes() -> int:
    storages = {}
    for found in gc.get_objects():
        if isinstance(found, Tensor) and found.device == CPU and not isinstance(found, DTensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _gather(folder: Path, world: World) -> None:
    """Gather an adapter without its base, and a full model in the requested dtype."""
    model = _loaded(folder / "plain", torch.float32, world, is_lora=True)
    num_bytes = list[int]()

    def counted(tensor: Tensor) -> Tensor:
        num_bytes.append(tensor.numel() * tensor.element_size())
        return full_tensor(tensor)

    fsdp.full_tensor = counted
    assert isinstance(model, PeftModel)
    save_adapter(model, folder / "adapter", STUDENT_ADAPTER, world)
    adapter = sum(p.numel() * 4 for name, p in model.named_parameters() if ".default." in name)
    assert sum(num_bytes) == adapter
    world.wait()
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() * 4 for tensor in saved.values()) == adapter
    num_bytes.clear()
    full = _loaded(folder / "plain", torch.float32, world)
    whole = gather_full_model(full, world, torch.bfloat16)
    assert sum(num_bytes) == sum(2 * tensor.numel() for tensor in full.state_dict().values())
    assert (whole is not None) == world.is_main
    if whole is not None:
        assert {p.dtype for p in whole.parameters()} == {torch.bfloat16}
    fsdp.full_tensor = full_tensor
    _write_and_read(folder / "state", full, world)


def _write_and_read(folder: Path, model: TrainedModel, world: World) -> None:
    """Write the exact weights in shards, and read them, in one process, too."""
    if world.is_main:
        folder.mkdir()
    world.wait()
    write_student(folder, model, world)
    before = {name: full_tensor(parameter).clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            local_shard(parameter).zero_()
    restore_student(folder, model)
    alone = load_model(str(folder.parent / "plain"), dtype=torch.float32, device=CPU)
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.zero_()
    restore_student(folder, alone)
    for name, parameter in model.named_parameters():
        assert torch.equal(full_tensor(parameter), before[name]), name
        assert torch.equal(alone.get_parameter(name), before[name]), name
