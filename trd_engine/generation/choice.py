"""Which engine samples: vLLM where it is installed and can serve the models, else transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import AutoConfig

from trd_engine.errors import SpecError

EngineName = Literal["vllm", "transformers"]

CPU_HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM's attention on a CPU is compiled for."""


def choose_engine(requested: str, sources: Sequence[str], *, device: torch.device) -> tuple[EngineName, str]:
    """The engine for the models in `sources`, and why, in a few words for the user.

    Raises `SpecError` where vLLM is asked for by name and cannot be had.
    """
    if requested == "transformers":
        return "transformers", "as the spec asks"
    obstacle = _obstacle(sources, device)
    if obstacle is None:
        return "vllm", "as the spec asks" if requested == "vllm" else "installed, and serves these models"
    if requested == "vllm":
        raise SpecError(f"sampling.engine = vllm: {obstacle}; use auto or transformers")
    return "transformers", obstacle


def _obstacle(sources: Sequence[str], device: torch.device) -> str | None:
    """What keeps vLLM from serving, None where nothing does."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if device.type != "cpu":
        return None
    for source in sources:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if head_dim not in CPU_HEAD_DIMS:
            return f"vLLM on a CPU has no attention for heads of {head_dim} dimensions ({source})"
    return None
