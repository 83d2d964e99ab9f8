"""A divided model put together again; what several processes do with it is in `test_several_processes`."""

from __future__ import annotations

import torch

from tests.trd_engine.tiny_runs import MODELS
from trd_engine.config import LoraConfig
from trd_engine.models.fsdp import gather_full_model
from trd_engine.models.loading import load_model
from trd_engine.models.lora import TEACHER_ADAPTER, adapter_pairs, add_adapter, add_teacher_adapter
from trd_engine.runtime.distributed import ALONE


def test_a_teachers_adapter_comes_along() -> None:
    """A student that teaches itself with weights that follow it has two adapters on one base."""
    base = load_model(str(MODELS / "tiny-student"), dtype=torch.float32, device=torch.device("cpu"))
    model = add_adapter(base, LoraConfig(rank=4, alpha=8), seed=0)
    add_teacher_adapter(model)
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = "acme/public-name"
    with torch.no_grad():
        for teacher, _ in adapter_pairs(model).values():
            teacher.add_(1.0)
    copy = gather_full_model(model, ALONE)
    assert copy is not None
    ours, theirs = copy.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert any(f".{TEACHER_ADAPTER}." in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for whole in (copy, model):
        assert {s.base_model_name_or_path for s in whole.peft_config.values()} == {"acme/public-name"}
