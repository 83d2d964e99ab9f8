"""Who holds a GPU's memory. Student's engine, teacher's engine and trainer take turns: one of them is awake at a time.

| phase                  | student's engine | teacher's engine | trainer                                      |
|------------------------|------------------|------------------|----------------------------------------------|
| start                  | built, sleeps    | built second     | weights                                      |
| rollout, evaluating    | awake            | sleeps           | weights, moments                             |
| refining               | sleeps           | awake            | weights, moments                             |
| diagnosing, training   | sleeps           | sleeps           | weights, moments, gradients, activations     |

`Samplers` puts engines to sleep; each wakes at its next use. What an engine may take is decided here before it is
built: what is free then, less what others will still take. vLLM fixes its share when it starts, and ends with its
own error if the share is not free or has no room for one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from trd_engine.runtime.errors import SpecError
from trd_estimate.hardware import GIB
from trd_estimate.memory import RESERVE_BYTES, WORKSPACE_BYTES


def free_and_total(device: torch.device) -> tuple[int, int]:
    """Return the bytes of a GPU that are free now, and all bytes. Torch returns its cached blocks first: an engine
    cannot take them."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)


@dataclass(frozen=True)
class EngineNeed:
    """What an engine takes of one GPU at least."""

    role: str
    """student or teacher, for messages."""
    weight_bytes: int
    token_bytes: int
    """Keys and values of one token in all layers."""
    max_model_len: int
    fields: str
    """Settings whose sum is `max_model_len`."""

    @classmethod
    def of(cls, role: str, folder: Path, dtype: torch.dtype, max_model_len: int, fields: str) -> EngineNeed:
        """Return what a model's folder needs. Its weights are counted without being loaded."""
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        num_weights = sum(parameter.numel() for parameter in model.parameters())
        return cls(role, num_weights * dtype.itemsize, kv_token_bytes(config, dtype), max_model_len, fields)

    @property
    def fixed_bytes(self) -> int:
        """What does not depend on the number of tokens."""
        return self.weight_bytes + WORKSPACE_BYTES


def kv_token_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one token's keys and values in all layers; an upper bound for models with windows."""
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    num_kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    num_bytes: int = 2 * text.num_hidden_layers * num_kv_heads * head_dim * dtype.itemsize
    return num_bytes


def engine_share(need: EngineNeed, memory: tuple[int, int], *, pending_bytes: int, wanted: float | None) -> float:
    """Return the share of the GPU's memory that an engine may take, for vLLM's ``gpu_memory_utilization``.

    Args:
        need: What it takes at least.
        memory: Free and total bytes of its GPU; other engines are asleep.
        pending_bytes: What the trainer and other engines will still take and keep while it is awake.
        wanted: The spec's share; None takes what is left.

    Raises:
        SpecError: The share is not free, or has no room for one sequence; names the field and a value that works.
    """
    free_bytes, total_bytes = memory
    left_bytes = max(0, free_bytes - pending_bytes - RESERVE_BYTES)
    left = left_bytes * 1000 // total_bytes / 1000
    if wanted is not None and wanted > left:
        raise SpecError(
            f"sampling.gpu_memory_utilization = {wanted:g}: the {need.role}'s engine would take "
            f"{_gib(wanted * total_bytes)}, but {_gib(left_bytes)} are left for it beside the training; set at most "
            f"{left:g}, or leave it out"
        )
    share = left if wanted is None else wanted
    num_tokens = int(share * total_bytes - need.fixed_bytes) // need.token_bytes
    if num_tokens < need.max_model_len:
        remedy = f"set the sum to at most {num_tokens}"
        if num_tokens <= 0:
            remedy = "use a smaller model, LoRA, more GPUs, or sampling.placement = separate"
        raise SpecError(
            f"{need.fields} = {need.max_model_len}: the {need.role}'s engine has {_gib(share * total_bytes)}; its "
            f"weights take {_gib(need.weight_bytes)}, its work space {_gib(WORKSPACE_BYTES)}, and the keys and values "
            f"of one sequence {_gib(need.max_model_len * need.token_bytes)}; {remedy}"
        )
    return share


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
