"""The vLLM engines of a run: their number, their sizes and their devices.

On GPUs, engines run in separate processes if there is more than one engine or training process: vLLM in our process
would take the first GPU whatever the rank, put itself into the trainer's process group, and let only one engine sleep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig

from trd_engine.config import RunConfig, SamplingConfig
from trd_engine.generation.protocol import Generator
from trd_engine.generation.vllm.residence import EngineNeed, engine_share, free_and_total
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import DeviceUnavailableError, SpecError
from trd_estimate.memory import SEPARATE_SHARE, SLEEPING_BYTES


def vllm_generators(
    config: RunConfig,
    device: torch.device,
    compute_dtype: torch.dtype,
    world: World,
    *,
    pending_bytes: int = 0,
    memory: Callable[[], tuple[int, int]] | None = None,
) -> tuple[Generator, Generator]:
    """Return the engines of student and teacher; the same one if the teacher samples nothing, or if the student is its
    own teacher. Two engines on a GPU take turns: the first sleeps while the second is built.

    `pending_bytes`: what the trainer will take of the GPU after this call and keep while an engine is awake. `memory`:
    returns free and total bytes of the GPU; None: of this process's. Raises `SpecError` if an engine does not fit.
    """
    from trd_engine.generation.vllm.generator import (  # vLLM's import takes seconds, and is optional
        VllmGenerator,
        VllmSettings,
    )

    sampling, is_gpu = config.sampling, device.type == "cuda"
    solving = sampling.max_prompt_tokens + sampling.max_new_tokens
    refines_here = config.refines and config.served_teacher is None
    refining = config.refine.max_prompt_tokens + config.refine.max_new_tokens if refines_here else 0
    shares_engine = config.teacher is None
    num_engines = 2 if refines_here and not shares_engine else 1
    is_colocated = is_gpu and sampling.placement == "colocated"
    takes_turns = is_gpu and (is_colocated or num_engines == 2)
    memory = memory or partial(free_and_total, device)
    common = VllmSettings(
        device=device.type,
        dtype=compute_dtype,
        seed=config.seed,
        tensor_parallel_size=sampling.tensor_parallel_size,
        visible_devices=_own_devices(sampling, device, world, num_engines),
        sleep_level=(2 if config.lora is None else 1) if takes_turns else 0,
    )

    def build(role: str, folder: Path, settings: VllmSettings, pending_bytes: int) -> VllmGenerator:
        _require_divided_heads(role, folder, sampling.tensor_parallel_size)
        share = sampling.gpu_memory_utilization or SEPARATE_SHARE
        if is_colocated:
            assert settings.max_model_len is not None
            part = "refine" if settings.max_model_len == refining else "sampling"
            fields = f"{part}.max_prompt_tokens + {part}.max_new_tokens"
            need = EngineNeed.of(role, folder, compute_dtype, settings.max_model_len, fields)
            share = engine_share(need, memory(), pending_bytes=pending_bytes, wanted=sampling.gpu_memory_utilization)
        return VllmGenerator(folder, replace(settings, gpu_memory_utilization=share))

    own = replace(
        common,
        max_model_len=max(solving, refining) if shares_engine else solving,
        lora_rank=config.lora.rank if config.lora else None,
    )
    student = build("student", Path(config.student), own, pending_bytes + SLEEPING_BYTES * (num_engines - 1))
    if num_engines == 1:
        return student, student
    student.sleep()
    teacher = replace(common, max_model_len=refining)
    return student, build("teacher", Path(config.teacher_folder), teacher, pending_bytes)


def _require_divided_heads(role: str, folder: Path, num_gpus: int) -> None:
    num_heads = AutoConfig.from_pretrained(folder).get_text_config().num_attention_heads
    if num_heads % num_gpus != 0:
        raise SpecError(
            f"sampling.tensor_parallel_size = {num_gpus}: vLLM divides the {num_heads} attention heads of the {role} "
            "equally; set a number of GPUs that divides them"
        )


def _own_devices(sampling: SamplingConfig, device: torch.device, world: World, num_engines: int) -> list[str] | None:
    """Return the GPUs for an engine's separate processes; None: it runs in this one, where vLLM takes the first GPU."""
    own = device.index or 0
    is_alone = world.size == 1 and num_engines == 1 and sampling.placement == "colocated"
    if device.type != "cuda" or (is_alone and own == 0):
        return None
    gpus = visible_gpus()
    if world.size == 1:  # the spec may name any GPU
        gpus = gpus[own:] + gpus[:own]
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return sampler_devices(sampling, gpus, local_rank=local_rank, num_local=num_local)


def visible_gpus() -> list[str]:
    """Return this machine's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def sampler_devices(sampling: SamplingConfig, gpus: Sequence[str], *, local_rank: int, num_local: int) -> list[str]:
    """Return the GPUs of process `local_rank` for sampling: its training GPU, or some after all training GPUs.

    Raises `DeviceUnavailableError` if there are too few.
    """
    size = sampling.tensor_parallel_size
    first = local_rank if sampling.placement == "colocated" else num_local + local_rank * size
    wanted = list(gpus[first : first + size])
    if len(wanted) < size:
        needed = num_local * (1 + size) if sampling.placement == "separate" else num_local
        raise DeviceUnavailableError(
            f"{num_local} training processes and their samplers (sampling.placement {sampling.placement}, "
            f"tensor_parallel_size {size}) need {needed} GPUs, but {len(gpus)} are visible; lower one of them"
        )
    return wanted
