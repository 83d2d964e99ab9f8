"""Engines take turns with the trainer within one GPU's memory.

No GPU is here: a scripted one counts bytes, and scripted engines ask it for their share and fail as vLLM does if there
is less. `vllm_generators` and `Samplers` are the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config

import trd_engine.generation.vllm.generator as vllm_module
from trd_engine.config import parse_config
from trd_engine.generation.samplers import Samplers
from trd_engine.generation.vllm.engines import vllm_generators
from trd_engine.generation.vllm.generator import VllmSettings
from trd_engine.generation.vllm.residence import EngineNeed, engine_share
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import SpecError
from trd_engine.types import Completion, GenerationRequest, SamplingSettings
from trd_estimate.hardware import GIB

GB = 10**9
TOTAL = 79 * GIB  # an H100's
CONTEXT_BYTES = 600 * 2**20  # CUDA's, of a process
SIZES = {
    "1.7B": Qwen3Config(
        hidden_size=2048,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=6144,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "8B": Qwen3Config(
        hidden_size=4096,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=12_288,
        vocab_size=151_936,
        tie_word_embeddings=False,
    ),
}


@dataclass
class ScriptedGpu:
    """Counts bytes by owner; whoever takes more than there is fails."""

    used: dict[str, int] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    peak: int = 0

    def free_and_total(self) -> tuple[int, int]:
        return TOTAL - sum(self.used.values()), TOTAL

    def take(self, owner: str, num_bytes: float) -> None:
        self.used[owner] = int(num_bytes)
        assert sum(self.used.values()) <= TOTAL, f"out of memory: {self.used}"
        self.peak = max(self.peak, sum(self.used.values()))

    def note(self, phase: str) -> None:
        owners = " | ".join(f"{name} {self.used.get(name, 0) / GB:5.1f}" for name in ("trainer", "student", "teacher"))
        self.timeline.append(f"{phase:<10} | {owners} | free {self.free_and_total()[0] / GB:5.1f}")


class ScriptedEngine:
    """Takes its share when it is built and when it wakes, as vLLM does."""

    gpu: ScriptedGpu

    def __init__(self, folder: Path, settings: VllmSettings) -> None:
        self.role, self.settings = "teacher" if "student" in self.gpu.used else "student", settings
        assert settings.max_model_len is not None
        need = EngineNeed.of(self.role, folder, settings.dtype, settings.max_model_len, "")
        free, total = self.gpu.free_and_total()
        self.bytes = int(settings.gpu_memory_utilization * total)
        self.rest = CONTEXT_BYTES + GIB // 2
        if free < self.bytes:
            raise ValueError("Free memory on device on startup is less than desired GPU memory utilization")
        if self.bytes - need.weight_bytes - 2 * GIB < need.max_model_len * need.token_bytes:
            raise ValueError("To serve at least one request with the model's max seq len, KV cache is needed")
        self.gpu.take(self.role, self.bytes)
        self.gpu.note(f"build {self.role}")

    def sleep(self) -> None:
        self.gpu.take(self.role, self.rest)

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSettings, **_: Any) -> list[Completion]:
        self.gpu.take(self.role, self.bytes)
        return []


@dataclass(frozen=True)
class Job:
    """A job of a new user, and what its trainer takes of one GPU by arithmetic, in GB."""

    student: str
    num_gpus: int
    is_lora: bool
    weights: float
    moments: float
    pass_peak: float
    """Gradients and activations."""
    free: float
    """Bytes for the engine that is awake, at least."""


JOBS = {
    "1.7B LoRA + 8B, 1 GPU": Job("1.7B", 1, True, 20.0, 0.6, 25, 55),
    "8B LoRA + 8B, 1 GPU": Job("8B", 1, True, 33.2, 1.4, 25, 40),
    "8B LoRA + 8B, 8 GPUs": Job("8B", 8, True, 4.2, 0.2, 22, 68),
    "8B full + 8B, 8 GPUs": Job("8B", 8, False, 6.1, 8.2, 34, 58),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ScriptedGpu:
    gpu = ScriptedGpu()
    monkeypatch.setattr(ScriptedEngine, "gpu", gpu, raising=False)
    monkeypatch.setattr(vllm_module, "VllmGenerator", ScriptedEngine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return gpu


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, config in SIZES.items():
        found[name] = tmp_path_factory.mktemp(name)
        config.save_pretrained(found[name])
    return found


def build(job: Job, folders: dict[str, Path], gpu: ScriptedGpu, **sampling: Any) -> Samplers:
    document: dict[str, Any] = {
        "mode": "trd",
        "student": str(folders[job.student]),
        "teacher": str(folders["8B"]),
        "dataset": {"path": "rows.jsonl"},
        "sampling": sampling,
    }
    config = parse_config(document | ({"lora": {}} if job.is_lora else {}))
    gpu.take("trainer", CONTEXT_BYTES + job.weights * GB)
    student, teacher = vllm_generators(
        config,
        torch.device("cuda", 0),
        torch.bfloat16,
        World(),
        pending_bytes=int(job.moments * GB),
        memory=gpu.free_and_total,
    )
    settings = SamplingSettings(0.6, 0.95, 20, 16, (1,))
    return Samplers(student, teacher, None, settings, settings)


@contextmanager
def training(gpu: ScriptedGpu, job: Job) -> Iterator[None]:
    """Take a step, which leaves AdamW's moments."""
    gpu.take("trainer", CONTEXT_BYTES + (job.weights + job.moments + job.pass_peak) * GB)
    yield
    gpu.take("trainer", CONTEXT_BYTES + (job.weights + job.moments) * GB)


@pytest.mark.parametrize("name", JOBS)
def test_two_engines_and_the_trainer_never_hold_more_than_there_is(
    name: str, gpu: ScriptedGpu, folders: dict[str, Path]
) -> None:
    job = JOBS[name]
    samplers = build(job, folders, gpu)
    for round_index in range(2):
        samplers.sample_student([])
        gpu.note("rollout")
        assert gpu.used["student"] >= job.free * GB
        samplers.refine([], [])
        gpu.note("refining")
        assert gpu.used["teacher"] >= job.free * GB
        samplers.sleep()
        with training(gpu, job):
            gpu.note("training")
        assert gpu.used["student"] + gpu.used["teacher"] < 4 * GB, round_index
    title = f"{name}, GB of {TOTAL / GB:.1f}, peak {gpu.peak / GB:.1f}"
    sys.stdout.write("\n".join(["", title, *gpu.timeline, ""]))  # shown by pytest -s


def test_engines_that_do_not_take_turns_fail(gpu: ScriptedGpu, folders: dict[str, Path]) -> None:
    """What is above can fail: the second engine finds the first one awake."""
    ScriptedEngine.sleep, sleep = lambda self: None, ScriptedEngine.sleep  # type: ignore[method-assign]
    try:
        with pytest.raises(SpecError, match="the teacher's engine has"):
            build(JOBS["1.7B LoRA + 8B, 1 GPU"], folders, gpu)
    finally:
        ScriptedEngine.sleep = sleep  # type: ignore[method-assign]


def test_a_sequence_for_which_there_is_no_room_is_refused_with_a_length_that_fits(
    gpu: ScriptedGpu, folders: dict[str, Path]
) -> None:
    job = JOBS["8B LoRA + 8B, 1 GPU"]
    long = {"max_prompt_tokens": 2048, "max_new_tokens": 400_000}
    with pytest.raises(SpecError) as refused:
        build(job, folders, gpu, **long)
    message = str(refused.value)
    assert message.startswith("sampling.max_prompt_tokens + sampling.max_new_tokens = 402048: the student's engine has")
    fits = int(message.rpartition(" ")[2])
    gpu.used.clear()
    build(job, folders, gpu, max_prompt_tokens=2048, max_new_tokens=fits - 2048)


def test_a_model_for_which_there_is_no_room_is_refused(gpu: ScriptedGpu, folders: dict[str, Path]) -> None:
    job = Job("8B", 1, False, 60.0, 10.0, 0.0, 0.0)
    with pytest.raises(SpecError, match=r"use a smaller model, LoRA, more GPUs, or sampling\.placement = separate"):
        build(job, folders, gpu)


def test_a_share_that_is_not_free_is_refused_with_one_that_is(gpu: ScriptedGpu, folders: dict[str, Path]) -> None:
    job = JOBS["1.7B LoRA + 8B, 1 GPU"]
    with pytest.raises(SpecError) as refused:
        build(job, folders, gpu, gpu_memory_utilization=0.9)
    message = str(refused.value)
    assert message.startswith("sampling.gpu_memory_utilization = 0.9: the student's engine would take 71.1 GiB")
    fits = float(message.partition("set at most ")[2].partition(",")[0])
    gpu.used.clear()
    build(job, folders, gpu, gpu_memory_utilization=fits)


def test_weights_and_cache_are_counted_as_vllm_does(folders: dict[str, Path]) -> None:
    """8.19 billion weights, and 144 KiB a token: 34,816 tokens take 4.8 GiB, vLLM's own figure for this model."""
    need = EngineNeed.of("teacher", folders["8B"], torch.bfloat16, 34_816, "refine.max_new_tokens")
    assert need.weight_bytes == pytest.approx(8.19e9 * 2, rel=0.01)
    assert need.max_model_len * need.token_bytes / GIB == pytest.approx(4.8, rel=0.01)


def test_what_the_trainer_will_take_later_is_left_to_it() -> None:
    need = EngineNeed("student", 0, 1, 10, "sampling.max_new_tokens")
    gpu = ScriptedGpu()
    shares = [engine_share(need, gpu.free_and_total(), pending_bytes=n * GIB, wanted=None) for n in (0, 8)]
    assert (shares[0] - shares[1]) * TOTAL == pytest.approx(8 * GIB, abs=TOTAL / 1000)
