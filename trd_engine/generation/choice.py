"""Which engine samples, and how: vLLM if it is installed and can serve the models, else transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from transformers import AutoConfig, PretrainedConfig

from trd_engine.config import SamplingConfig
from trd_engine.generation.vllm.runtime import import_vllm
from trd_engine.runtime.errors import DeviceUnavailableError, SpecError
from trd_engine.runtime.events import Reporter
from trd_engine.types import SamplingSettings

EngineName = Literal["vllm", "transformers"]

CPU_HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes for which vLLM's attention on a CPU is compiled."""


def choose_and_report(
    sampling: SamplingConfig,
    sources: Sequence[str],
    device: torch.device,
    reporter: Reporter,
    *,
    adapter_dtype: torch.dtype | None = None,
) -> EngineName:
    """Choose the engine for the models in `sources`, and report why and which setting is ignored; see `choose_engine`.

    Raises `SpecError`, also if the spec asks for devices that this run's sampler cannot use.
    """
    engine, reason = choose_engine(sampling.engine, sources, device=device, adapter_dtype=adapter_dtype)
    reporter.notice("info", "engine_chosen", f"sampling with {engine}: {reason}")
    if engine == "vllm" and device.type == "cuda":
        return engine
    here = f"this run samples with {engine} on {device.type}"
    if sampling.placement == "separate":
        raise SpecError(f"sampling.placement = separate: only vLLM on GPUs supports it, but {here}; remove it")
    if sampling.gpu_memory_utilization is not None:
        reporter.notice(
            "warn",
            "setting_ignored",
            f"sampling.gpu_memory_utilization is ignored: {here}",
            remedy="leave it out, or run the job on a GPU",
        )
    return engine


def sampling_settings(sampling: SamplingConfig, stop_token_ids: tuple[int, ...]) -> SamplingSettings:
    """Return how the spec samples rollouts; any of `stop_token_ids` ends a completion."""
    return SamplingSettings(
        sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens, stop_token_ids
    )


def choose_engine(
    requested: str, sources: Sequence[str], *, device: torch.device, adapter_dtype: torch.dtype | None = None
) -> tuple[EngineName, str]:
    """Return the engine for the models in `sources`, and why, in a few words for the user. `adapter_dtype`: that of a
    model with an adapter, None without one.

    Raises `SpecError` if the spec requests vLLM and it cannot be used, and `DeviceUnavailableError` if vLLM is broken
    on a GPU machine, where a run would take days longer without it.
    """
    if requested == "transformers":
        return "transformers", "requested by the spec"
    try:
        obstacle = _obstacle(sources, device, adapter_dtype)
    except _BrokenVllmError as error:
        if device.type == "cuda":
            raise DeviceUnavailableError(
                f"sampling.engine = {requested}: {error}; repair its installation, or set sampling.engine to "
                "transformers, which samples many times slower"
            ) from error
        obstacle = str(error)
    if obstacle is None:
        return "vllm", "requested by the spec" if requested == "vllm" else "installed, and supports these models"
    if requested == "vllm":
        raise SpecError(f"sampling.engine = vllm: {obstacle}; use auto or transformers")
    return "transformers", obstacle


class _BrokenVllmError(Exception):
    """vLLM is installed, but not for this machine."""


def _obstacle(sources: Sequence[str], device: torch.device, adapter_dtype: torch.dtype | None) -> str | None:
    """Return the reason why vLLM cannot be used; None if it can. Raises `_BrokenVllmError`."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if device.type == "cuda" and adapter_dtype == torch.float32:
        return "on a GPU vLLM has no LoRA in fp32, in which this run computes (precision)"
    try:
        vllm = import_vllm()
    except ImportError as error:
        raise _BrokenVllmError(str(error)) from error
    from vllm.platforms import current_platform

    if device.type != current_platform.device_type:
        raise _BrokenVllmError(
            f"the installed vLLM runs on {current_platform.device_type}, and this run on {device.type}"
        )
    supported = vllm.ModelRegistry.get_supported_archs()
    for source in sources:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        obstacle = _model_obstacle(config, supported, on_cpu=device.type == "cpu")
        if obstacle is not None:
            return f"{obstacle} ({source})"
    return None


def _model_obstacle(config: PretrainedConfig, supported: Collection[str], *, on_cpu: bool) -> str | None:
    architectures = config.architectures or []
    if not set(architectures) & set(supported):
        return f"vLLM does not know {' or '.join(architectures) or 'a model without a named architecture'}"
    text_config = config.get_text_config()
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    if on_cpu and head_dim not in CPU_HEAD_DIMS:
        return f"vLLM on a CPU has no attention for heads of {head_dim} dimensions"
    return None
