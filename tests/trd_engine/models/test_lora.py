"""LoRA adapts all linear layers of a model's blocks, whatever they are called, and says what it leaves out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from tests.trd_engine.tiny_runs import MODELS, events
from trd_engine.config import LoraConfig, parse_config
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.models import lora
from trd_engine.models.loading import load_model
from trd_engine.models.lora import adapter_coverage, add_adapter, load_adapter, merged_weights
from trd_engine.runtime.errors import ModelRefusedError
from trd_engine.runtime.events import Reporter
from trd_engine.training.model_setup import report_adapter

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
FUSED = ("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value")
LAYERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "llama": (SIZES, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    "phi3": (SIZES, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "glm": ({**SIZES, "head_dim": 8}, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")),
    "gpt2": (OLDER, ("c_attn", "c_fc", "c_proj")),
    "gpt_neox": (SIZES, FUSED),
    "bloom": ({**OLDER, "hidden_size": 32}, FUSED),
    "mpt": (
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64},
        ("Wqkv", "out_proj", "up_proj", "down_proj"),
    ),
    "opt": (
        {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16},
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    ),
    "codegen": ({**OLDER, "rotary_dim": 4}, ("qkv_proj", "out_proj", "fc_in", "fc_out")),
    "phi": (SIZES, ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
}


def make(kind: str, sizes: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    model.eval()
    return model


@pytest.mark.filterwarnings("error:fan_in_fan_out")
@pytest.mark.parametrize(("kind", "sizes", "names"), [(k, *given) for k, given in LAYERS.items()], ids=LAYERS)
def test_all_layers_of_the_blocks_are_adapted_trained_and_merged(
    kind: str, sizes: dict[str, Any], names: tuple[str, ...]
) -> None:
    model = add_adapter(make(kind, sizes), LoraConfig(rank=2, alpha=4), seed=0)
    found = adapter_coverage(model)
    assert (found.layers, found.left_out, found.share) == (tuple(sorted(names)), (), 1.0)
    trained = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.05)
    token_ids = torch.tensor([[3, 4, 5, 6]])
    logits = model(token_ids).logits
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    plain = make(kind, sizes)
    plain.load_state_dict(dict(merged_weights(model)))
    torch.testing.assert_close(plain(token_ids).logits, logits, atol=1e-5, rtol=1e-4)


EXPERTS: dict[str, Any] = {
    **SIZES,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
def test_adapters_of_fused_experts_are_merged() -> None:
    """PEFT wraps the experts of Qwen3-Next once for each of their two weights."""
    model = add_adapter(make("qwen3_next", EXPERTS), LoraConfig(rank=2, alpha=4), seed=0)
    assert {"gate_up_proj", "down_proj"} <= set(adapter_coverage(model).layers)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    token_ids = torch.tensor([[3, 4, 5, 6]])
    plain, before = make("qwen3_next", EXPERTS), make("qwen3_next", EXPERTS).state_dict()
    merged = dict(merged_weights(model))
    assert not torch.equal(
        merged["model.layers.1.mlp.experts.down_proj"], before["model.layers.1.mlp.experts.down_proj"]
    )
    plain.load_state_dict(merged)
    with torch.no_grad():
        torch.testing.assert_close(plain(token_ids).logits, model(token_ids).logits, atol=1e-5, rtol=1e-4)


PARTS = {
    "fused experts": ("mixtral", {**SIZES, "num_local_experts": 4}, "auto", ("gate_up_proj", "down_proj", "gate")),
    "a few layers of choice": ("llama", SIZES, ["q_proj", "v_proj"], ("down_proj", "gate_proj", "up_proj", "o_proj")),
}


@pytest.mark.parametrize(("kind", "sizes", "targets", "left_out"), PARTS.values(), ids=PARTS)
def test_a_notice_says_what_is_left_out(
    kind: str, sizes: dict[str, Any], targets: Any, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    config = parse_config(
        {"mode": "opsd", "student": "x", "dataset": {"path": "x"}, "lora": {"rank": 2, "target_modules": targets}}
    )
    assert config.lora is not None
    student = add_adapter(make(kind, sizes), config.lora, seed=0)
    with Reporter(tmp_path) as reporter:
        report_adapter(cast(ModelPair, SimpleNamespace(student=student)), config, reporter)
    (notice,) = events(tmp_path, "notice")
    assert (notice["level"], notice["code"]) == ("warn", "lora_coverage")
    assert set(left_out) <= set(notice["message"].partition("without an adapter are ")[2].split(", "))
    assert notice["message"].startswith("LoRA adapts ")
    assert notice["remedy"]


def test_a_whole_adapter_is_information(tmp_path: Path) -> None:
    config = parse_config({"mode": "opsd", "student": "x", "dataset": {"path": "x"}, "lora": {"rank": 2}})
    assert config.lora is not None
    student = add_adapter(make("phi3", SIZES), config.lora, seed=0)
    with Reporter(tmp_path) as reporter:
        report_adapter(cast(ModelPair, SimpleNamespace(student=student)), config, reporter)
    (notice,) = events(tmp_path, "notice")
    assert (notice["level"], notice["code"]) == ("info", "lora_layers")
    assert (
        "100% of the weights in the student's blocks, the layers down_proj, gate_up_proj, o_proj, qkv_proj"
        in (notice["message"])
    )


class _Fp32Copies(TorchDispatchMode):
    """Counts the copies of layer inputs in fp32."""

    def __init__(self, num_values: int) -> None:
        super().__init__()
        self.num_values, self.num_copies = num_values, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.dtype == torch.float32:
            self.num_copies += result.numel() == self.num_values
        return result


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_inputs_are_not_copied_to_fp32_for_the_product_in_bf16(
    monkeypatch: pytest.MonkeyPatch, is_checkpointed: bool
) -> None:
    """With the same outputs and gradients, bit for bit, as with PEFT's own copies."""

    def layer_after_a_pass(*, casts: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
        if casts:
            monkeypatch.setattr(lora, "_cast_outside_autocast", lambda inputs, dtype: inputs.to(dtype))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        adapted = add_adapter(model, LoraConfig(rank=4, target_modules=["down_proj"]), seed=1)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        if is_checkpointed:
            adapted.train()
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
            adapted.enable_input_require_grads()
        ids = torch.arange(24).unsqueeze(0)
        with _Fp32Copies(24 * config.intermediate_size) as copies:
            with torch.autocast("cpu", torch.bfloat16):
                logits = adapted(input_ids=ids, use_cache=False).logits
            logits.float().square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])
        return logits.detach(), gradient, copies.num_copies

    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    without, with_copies = layer_after_a_pass(casts=False), layer_after_a_pass(casts=True)
    assert torch.equal(without[0], with_copies[0])
    assert torch.equal(without[1], with_copies[1])
    assert without[2] == 0 < with_copies[2]


def test_without_autocast_inputs_are_still_cast() -> None:
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=80, num_hidden_layers=1, head_dim=16, num_key_value_heads=32
    )
    adapted = add_adapter(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), LoraConfig(rank=4), seed=1)
    assert adapted(input_ids=torch.arange(5).unsqueeze(0)).logits.isfinite().all()


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def student() -> PreTrainedModel:
        return load_model(str(MODELS / "tiny-student"), dtype=torch.float32, device=torch.device("cpu"))

    add_adapter(student(), LoraConfig(rank=2, alpha=4), seed=0).save_pretrained(str(tmp_path))
    path = next(tmp_path.rglob("adapter_model.safetensors"))
    weights = load_file(path)
    assert load_adapter(student(), path.parent).active_adapter
    part = dict(list(weights.items())[:4])
    wider = {name: torch.zeros(weight.shape[0] + 1, weight.shape[1]) for name, weight in weights.items()}
    for wrong, match in ((part, "Found missing adapter keys"), (wider, "size mismatch")):
        save_file(wrong, path)
        with pytest.raises(ModelRefusedError, match=f"does not fit its base model: .*{match}"):
            load_adapter(student(), path.parent)
