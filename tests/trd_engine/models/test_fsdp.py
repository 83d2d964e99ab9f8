"""Models that processes share are loaded in shards, and put together again; runs are in `test_several_processes`."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trd_engine import rank_models
from tests.trd_engine.forked import fork_ranks
from tests.trd_engine.tiny_runs import MODELS
from trd_engine.config import LoraConfig
from trd_engine.models import fsdp
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


def test_merged_weights_leave_the_device_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that holds an 8B model in bf16 may have no room for the merged one beside it."""
    base = load_model(str(MODELS / "tiny-student"), dtype=torch.float32, device=torch.device("cpu"))
    model = add_adapter(base, LoraConfig(rank=4, alpha=8), seed=0)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    made: list[weakref.ref[torch.Tensor]] = []
    most = 0
    merged_weights = fsdp.merged_weights

    def watched(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for name, tensor in merged_weights(model):
            if tensor.data_ptr() not in own:
                made.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in made))
            yield name, tensor

    monkeypatch.setattr(fsdp, "merged_weights", watched)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor.clone())  # as on a GPU
    merged = fsdp.merged_model(model, None)
    assert len(made) > 10
    assert most <= 2
    assert own.isdisjoint(parameter.data_ptr() for parameter in merged.parameters())


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "tie_word_embeddings": False,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("qwen3", SIZES),
    "tied": ("qwen3", {**SIZES, "tie_word_embeddings": True}),
    "experts": ("qwen3_moe", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
}
"""Fused experts are stored one by one, and put together while they are loaded."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, (kind, sizes) in KINDS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.bfloat16)
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.slow
def test_models_are_loaded_and_gathered_in_shards(models: Path) -> None:
    """No process ever holds a whole model, and each holds what it would of one that was loaded whole. A sync of an
    adapter leaves the base where it is."""
    log, one_by_one = models / "log", {"HF_DEACTIVATE_ASYNC_LOAD": "1"}
    ended = fork_ranks(rank_models.share, models, num_processes=2, log=log, **one_by_one)
    assert ended == [0, 0], log.read_text()
    peaks = json.loads((models / "peaks.json").read_text(encoding="utf-8"))
    for name, peak in peaks.items():
        whole = 2 * sum(path.stat().st_size for path in (models / name).glob("*.safetensors"))  # in fp32
        # Its half, and the module that is sharded at the moment: one of 12 layers, or embedding and head.
        assert 0.5 * whole < peak < 0.65 * whole, (name, peak, whole)
