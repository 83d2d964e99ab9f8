"""A packed row gives each sequence what it gets alone, in every family of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.trd_engine.tiny_runs import events
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.models.attention import packed as packed_attention
from trd_engine.models.attention.packed import NAME
from trd_engine.models.attention.packing import packing_notice, packing_of, read_row
from trd_engine.models.loading import backbone_of
from trd_engine.runtime.events import Reporter
from trd_engine.teachers.local import Teacher
from trd_engine.training.model_setup import report_packing

LENGTHS = (3, 17, 17, 30, 1, 30)
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
WINDOWED = {"sliding_window": 5}
CAPPED = {**WINDOWED, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
PACKED = {
    "qwen3": {},
    "llama": {},
    "qwen2": {},
    "mistral": WINDOWED,
    "gemma2": CAPPED,
    "gemma3_text": {**WINDOWED, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    "cohere2": {**WINDOWED, "num_hidden_layers": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
MAMBA = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8}
OTHERWISE: dict[str, tuple[str, dict[str, Any]]] = {
    "gptj": ("mask", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_inner": 48}),
    "gpt_neo": (
        "mask",
        {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 5},
    ),
    "llama4_text": ("single", {"attention_chunk_size": 5, "num_local_experts": 2, "intermediate_size_mlp": 32}),
    "gpt_oss": ("single", {**WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "lfm2": ("single", {"block_dim": 32, "layer_types": ["conv", "full_attention"]}),
    "bloom": ("single", {"n_head": 4, "n_layer": 2}),
    "mamba2": ("single", MAMBA),
    "falcon_h1": ("single", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1}),
}


def make_model(family: str, changes: dict[str, Any] | None = None, **options: Any) -> PreTrainedModel:
    """Make a model of random weights, large enough for every part to matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, **(changes or {})})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def make_row() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids_1T = torch.randint(0, 97, (1, sum(LENGTHS)), generator=generator)
    return ids_1T, torch.cat([torch.arange(length) for length in LENGTHS]).unsqueeze(0)


def alone(model: nn.Module, ids_1T: Tensor) -> Tensor:
    """Run each sequence by itself, through the architecture's own eager attention."""
    rows = [backbone_of(model)(input_ids=ids, use_cache=False) for ids in ids_1T.split(list(LENGTHS), dim=1)]
    return torch.cat([row.last_hidden_state for row in rows], dim=1).squeeze(0)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def gradient_of(model: nn.Module, hidden_TH: Tensor) -> Tensor:
    """Return the gradient of a loss that no token leaves unweighted."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(2)
    (hidden_TH * torch.randn(hidden_TH.shape, generator=generator)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", PACKED)
def test_packed_is_alone(family: str) -> None:
    model = make_model(family, PACKED[family])
    reference = make_model(family, PACKED[family], attn_implementation="eager")
    ids_1T, positions_1T = make_row()
    packed_TH = read_row(model, ids_1T, positions_1T, LENGTHS)
    alone_TH = alone(reference, ids_1T)
    assert packing_of(model).kind == "attention"
    assert packing_notice("student", model) is None
    assert relative(packed_TH, alone_TH) < 1e-5
    assert relative(gradient_of(model, packed_TH), gradient_of(reference, alone_TH)) < 1e-5


LONG_ROPE = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 20}


@pytest.mark.parametrize(
    ("family", "rope", "limit"),
    [("phi3", {"rope_type": "longrope", **LONG_ROPE}, 256), ("llama", {"rope_type": "dynamic"}, 20)],
    ids=["longrope", "dynamic"],
)
def test_rotary_frequencies_that_a_neighbour_would_change(family: str, rope: dict[str, Any], limit: int) -> None:
    rope = {"rope_theta": 10000.0, "factor": 4.0, **rope}
    model = make_model(family, {"rope_parameters": rope, "max_position_embeddings": limit})
    ids_1T, positions_1T = make_row()
    assert packing_of(model).kind == "single"
    assert relative(read_row(model, ids_1T, positions_1T, LENGTHS), alone(model, ids_1T)) < 1e-5


@pytest.mark.parametrize("family", OTHERWISE)
def test_what_our_attention_cannot_serve_is_read_otherwise(family: str) -> None:
    """Special attention, chunks, sinks, position biases, states and convolutions along the row."""
    kind, changes = OTHERWISE[family]
    model = make_model(family, changes)
    ids_1T, positions_1T = make_row()
    with torch.no_grad():
        found_TH = read_row(model, ids_1T, positions_1T, LENGTHS)
        expected_TH = alone(make_model(family, changes, attn_implementation="eager"), ids_1T)
    assert packing_of(model).kind == kind
    assert type(model).__name__ in (packing_notice("teacher", model) or "")
    assert relative(found_TH, expected_TH) < 1e-5


def test_adapters_and_recomputed_layers_keep_their_segments() -> None:
    """Gradient checkpointing runs a layer again in the backward pass, when the forward pass is long over."""
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(make_model("qwen3"), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        packed_TH = read_row(model, *make_row(), LENGTHS)
        gradients.append(gradient_of(model, packed_TH))
    reference = model.get_base_model()
    reference.set_attn_implementation("eager")
    gradients.append(gradient_of(model, alone(reference, make_row()[0])))
    assert torch.equal(gradients[0], gradients[1])
    assert relative(gradients[0], gradients[2]) < 1e-5


def test_autocast_computes_in_its_dtype() -> None:
    model = make_model("qwen3")
    ids_1T, positions_1T = make_row()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        packed_TH = read_row(model, ids_1T, positions_1T, LENGTHS)
        alone_TH = alone(model, ids_1T)
    assert packing_of(model).kind == "attention"
    exact_TH = read_row(model, ids_1T, positions_1T, LENGTHS)
    assert relative(packed_TH.float(), exact_TH) < 1.5 * relative(alone_TH.float(), exact_TH)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", PACKED)
def test_the_trial_passes_in_half_precision(family: str, dtype: torch.dtype) -> None:
    assert packing_of(make_model(family, PACKED[family]).to(dtype)).kind == "attention"


def test_the_trial_runs_in_the_dtype_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails under autocast alone would else be found by the first step."""
    by_runs = packed_attention._by_runs

    def fails_in_bf16(query: Tensor, *rest: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("got an unexpected keyword argument 'enable_gqa'")
        return by_runs(query, *rest)

    monkeypatch.setattr(packed_attention, "_by_runs", fails_in_bf16)
    with torch.autocast("cpu", torch.bfloat16):
        assert packing_of(make_model("qwen3")).kind == "mask"
    assert packing_of(make_model("qwen3")).kind == "attention"


def test_a_leak_within_the_tolerance_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    by_runs = packed_attention._by_runs

    def leaks(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        return by_runs(query, key, value + 3e-5 * value.flip(2), *rest)

    monkeypatch.setattr(packed_attention, "_by_runs", leaks)
    assert packing_of(make_model("qwen3")).kind == "mask"


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text"])
def test_outside_a_row_nothing_changes(family: str) -> None:
    """Generation borrows the module: padded batches meet transformers' own attention, bit for bit, and so do single
    tokens after a cache except for the rounding of heads that are served together."""
    untouched, model = make_model(family, PACKED[family]), make_model(family, PACKED[family])
    packing_of(model)
    assert model.config._attn_implementation == NAME
    ids_BT = torch.arange(24).reshape(2, 12)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :5] = 0
    for padding_BT in (None, mask_BT):
        with torch.no_grad():
            first = [m(ids_BT, attention_mask=padding_BT, use_cache=True) for m in (untouched, model)]
            assert torch.equal(first[0].logits, first[1].logits)
            next_BT = ids_BT[:, :1]
            second = [
                m(next_BT, past_key_values=out.past_key_values).logits
                for m, out in zip((untouched, model), first, strict=True)
            ]
            torch.testing.assert_close(second[0], second[1], rtol=1e-5, atol=1e-5)


def test_a_soft_cap_holds_outside_a_row_too() -> None:
    """transformers' sdpa drops it: the sampler would answer with another model than the trainer's."""
    model = make_model("gemma2", CAPPED)
    reference = make_model("gemma2", CAPPED, attn_implementation="eager")
    packing_of(model)
    ids_BT = torch.arange(24).reshape(2, 12)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :5] = 0
    with torch.no_grad():
        for padding_BT in (None, mask_BT):
            outputs = [m(ids_BT, attention_mask=padding_BT, use_cache=True) for m in (reference, model)]
            seen = slice(None) if padding_BT is None else padding_BT.bool()
            assert relative(outputs[1].logits[seen], outputs[0].logits[seen]) < 1e-5
            seen_BT = None if padding_BT is None else torch.cat([padding_BT, torch.ones(2, 1, dtype=torch.long)], dim=1)
            nexts = [
                m(ids_BT[:, :1], attention_mask=seen_BT, past_key_values=out.past_key_values).logits
                for m, out in zip((reference, model), outputs, strict=True)
            ]
            assert relative(nexts[1], nexts[0]) < 1e-5


def test_the_choice_leaves_modes_and_randomness_alone() -> None:
    model = make_model("qwen3").train()
    model.base_model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    packing_of(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_out_of_memory_is_no_reason_to_read_a_model_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("qwen3", PACKED["qwen3"])

    def exhaust(*_: object, **__: object) -> None:
        torch.empty(2**60)  # the allocator's own error

    monkeypatch.setattr(packed_attention, "_by_runs", exhaust)
    with pytest.raises(RuntimeError, match="allocate"):
        packing_of(model)


def test_a_run_says_which_model_is_read_slowly(tmp_path: Path) -> None:
    teacher = Teacher(make_model("bloom", OTHERWISE["bloom"][1]))
    models = ModelPair(make_model("llama"), teacher, Divergence(), torch.float32, ())
    with Reporter(tmp_path) as reporter:
        report_packing(models, reporter)
    (notice,) = events(tmp_path, "notice")
    assert notice["code"] == "packing_fallback"
    assert notice["message"].startswith("the teacher's architecture BloomForCausalLM")
