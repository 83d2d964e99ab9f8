"""Stages that run the engine as jobs do: a whole run with a resume, faults, and the pace of a small model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.figures import Case, Figure, expect, rounded, synchronize
from benchmarks.gpu_check.models import random_model
from trd_engine.config import parse_config
from trd_engine.distillation.batching import split_into_micro_batches
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.doctor import engine_checks
from trd_engine.doctor.findings import Machine
from trd_engine.runtime.hardware import is_out_of_memory
from trd_engine.teachers.local import Teacher
from trd_engine.training.loop import distil
from trd_engine.training.step import optimizer_step
from trd_engine.types import TrainingSequence

SMOLLM2_135M = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def whole_run(case: Case) -> list[Figure]:
    """Sample, refine, verify, train, evaluate, save: losses in fp32 are the CPU's, and a resumed run ends the same."""
    folder, budget = case.scratch, 8 if case.small else 24
    document: dict[str, Any] = {
        "mode": "trd",
        "student": engine_checks.write_random_model(folder / "student", 1),
        "teacher": engine_checks.write_random_model(folder / "teacher", 2),
        "task": "exact",
        "precision": "fp32",
        "lora": None,
        "prompts": {"solve": "{problem}", "refine": "{problem} {attempt}"},
        "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": budget},
        "refine": {"max_prompt_tokens": 128, "max_new_tokens": budget},
        "optim": {"batch_size": 4, "learning_rate": 1e-3},
        "evaluation": {"holdout": 0.15, "k": 2},
        "checkpoints": {"every_steps": 1, "keep": 9},
    }
    rows = [{"problem": f"w{i} w{i + 1} w{i + 2}", "answer": f"w{i}"} for i in range(10, 20 if case.small else 40)]
    started_at = time.perf_counter()
    for name, device in (("here", str(case.device)), ("cpu", "cpu")):
        distil(parse_config({**document, "device": device}), folder / name, problems=rows)
    seconds = time.perf_counter() - started_at
    here, cpu = _losses(folder / "here"), _losses(folder / "cpu")
    expect(len(here) == len(cpu) >= 2, f"{len(here)} steps here and {len(cpu)} on the CPU")
    error = max(abs(a - b) / abs(b) for a, b in zip(here, cpu, strict=True))
    expect(error <= 1e-4, f"losses differ from the CPU's by {error:.1e}")
    checkpoint = next((folder / "here").rglob("step-00000001"))
    config = parse_config({**document, "device": str(case.device)})
    distil(config, folder / "resumed", problems=rows, resume_from=checkpoint)
    resumed = _losses(folder / "resumed")
    drift = max(abs(a - b) / abs(b) for a, b in zip(resumed, here[-len(resumed) :], strict=True))
    expect(drift <= 1e-5, f"the resumed run's losses differ by {drift:.1e}")
    return [
        Figure("losses against the CPU's", rounded(error)),
        Figure("resumed against uninterrupted", rounded(drift)),
        Figure("both runs", rounded(seconds), "s"),
    ]


def _losses(folder: Path) -> list[float]:
    events = map(json.loads, (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [event["values"]["loss"] for event in events if event["type"] == "metrics" and "loss" in event["values"]]


def faults(case: Case) -> list[Figure]:
    """Memory that runs out is recognised in an allocation and in a step; a device-side assert is not taken for it."""
    machine = Machine(case.device, case.scratch)
    found = [Figure("out of memory", engine_checks.check_out_of_memory(machine))]
    if not case.is_gpu:
        return found
    try:
        torch.cuda.set_per_process_memory_fraction(0.01, case.device)
        held = [torch.empty(2**28, dtype=torch.uint8, device=case.device) for _ in range(10_000)]
        expect(not held, "a limit on memory was not kept")
    except torch.OutOfMemoryError as error:
        expect(is_out_of_memory(error), "memory that is used up is not recognised")
    return [*found, Figure("device assert", engine_checks.check_device_assert(machine))]


def updates(case: Case) -> list[Figure]:
    """Measure updates a second of a model of SmolLM2-135M's shape, 8 sequences of 192 tokens, all weights trained; and
    tokens a second of its sampling."""
    sizes, num_tokens, repeats = ({}, 16, 2) if case.small else (SMOLLM2_135M, 192, 10)
    dtype = torch.bfloat16 if case.is_gpu else torch.float32
    student, teacher = random_model(case, torch.float32, 0, **sizes), random_model(case, dtype, 1, **sizes)
    models = ModelPair(student, Teacher(teacher.requires_grad_(False)), Divergence(), dtype, ())
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    ids = [tuple(range(3, 3 + n)) for n in (64, 128, num_tokens)]
    sequences = [TrainingSequence(*ids, position=position) for position in range(8)]
    batches = split_into_micro_batches(sequences, max_tokens=16_384, device=case.device)
    for step in range(repeats + 1):
        if step == 1:
            synchronize(case)
            started_at = time.perf_counter()
        optimizer_step(models, batches, optimizer, max_grad_norm=1.0)
    synchronize(case)
    pace = repeats / (time.perf_counter() - started_at)
    prompts_BT = torch.arange(3, 67, device=case.device).repeat(8, 1)
    started_at = time.perf_counter()
    with torch.no_grad():
        sampled_BT = teacher.generate(
            prompts_BT, attention_mask=torch.ones_like(prompts_BT), max_new_tokens=num_tokens, min_new_tokens=num_tokens
        )
    synchronize(case)
    sampled = (sampled_BT.shape[1] - 64) * 8 / (time.perf_counter() - started_at)
    return [Figure("updates", rounded(pace), "1/s"), Figure("sampling", rounded(sampled), "tokens/s")]
