"""Chooses and builds the generators of a run, or of an evaluation alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trd_engine.config import SamplingConfig
from trd_engine.generation.choice import EngineName, choose_engine
from trd_engine.generation.vllm.engines import check_vllm_settings
from trd_engine.runtime.events import Reporter
from trd_engine.types import SamplingSettings


def choose_and_report(
    sampling: SamplingConfig,
    sources: Sequence[str],
    device: torch.device,
    reporter: Reporter,
    *,
    adapter_dtype: torch.dtype | None = None,
) -> EngineName:
    """Choose the engine for the models in `sources`, and report why; see `choose_engine`. Raises `SpecError`."""
    engine, reason = choose_engine(sampling.engine, sources, device=device, adapter_dtype=adapter_dtype)
    reporter.notice("info", "engine_chosen", f"sampling with {engine}: {reason}")
    check_vllm_settings(sampling, engine, device, reporter)
    return engine


def sampling_settings(sampling: SamplingConfig, stop_token_ids: tuple[int, ...]) -> SamplingSettings:
    """Return how the spec samples rollouts; any of `stop_token_ids` ends a completion."""
    return SamplingSettings(
        sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens, stop_token_ids
    )
