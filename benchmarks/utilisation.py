"""Share of the machine's matrix-multiply peak that the update uses.

    python -m benchmarks.utilisation

The peak is the best rate of torch's matrix product over a few large shapes, with the same dtype and threads, measured
before and after each update. The update's work is computed, not measured:

    backbone   2 · P · (S · 3 + T)      forward 1, backward 2 for the student; forward for the teacher
    attention  4 · L · D · Σ n² / 2 · 4 scores and values, causal, student's three passes and the teacher's
    head       2 · V · H · N · 4        both models' logits, gradients of the hidden states and of the head

with P weights of the layers' matrices, S and T tokens that student and teacher read, L layers, D the width of all
heads, n a sequence's length, V vocabulary, H hidden size, N trained tokens. Norms, activations, softmax and the
optimizer do not count as work, but their time counts: utilisation = work / (time · peak).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_machine
from benchmarks.step import WORKLOADS
from benchmarks.step_contenders import MAX_GRAD_NORM, Workload, random_model
from trd_engine.config import OptimConfig
from trd_engine.distillation.batching import MicroBatch, pass_tokens, split_into_micro_batches
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.runtime.hardware import keep_freed_memory
from trd_engine.teachers.local import Teacher
from trd_engine.training.optim import make_optimizer
from trd_engine.training.step import optimizer_step
from trd_engine.types import TrainingSequence

RESULTS = Path(__file__).parent / "results"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEAK_SHAPES = ((2048, 2048, 2048), (4096, 4096, 1024), (2048, 1536, 576))
TARGET = 0.55
NUM_WARM_UP = 2
"""Updates that are not counted, because the process still gets its memory pages from the system."""


@dataclass(frozen=True)
class Measured:
    """Medians over the counted updates."""

    update_seconds: float
    peak_flops: float
    """Peak floating-point operations per second."""
    work_flops: float

    @property
    def utilisation(self) -> float:
        """Share of the peak."""
        return self.work_flops / (self.update_seconds * self.peak_flops)


def _rate(left_MK: Tensor, right_KN: Tensor) -> float:
    left_MK @ right_KN
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        left_MK @ right_KN
        seconds.append(time.perf_counter() - began)
    return 2 * left_MK.numel() * right_KN.shape[1] / min(seconds)


def work_of(model: nn.Module, batches: list[MicroBatch]) -> float:
    """Return the work by the formula in the module's docstring."""
    config = model.config
    layers = model.get_decoder().layers
    num_weights = sum(layer.weight.numel() for layer in layers.modules() if isinstance(layer, nn.Linear))
    num_student = sum(batch.student.input_ids_1T.numel() for batch in batches)
    num_teacher = sum(batch.teacher.input_ids_1T.numel() for batch in batches)
    backbone = 2 * num_weights * (3 * num_student + num_teacher)
    squares = sum(3 * _squares(batch.student.lengths) + _squares(batch.teacher.lengths) for batch in batches)
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * squares / 2
    num_trained = sum(batch.num_trained_tokens for batch in batches)
    return backbone + attention + 2 * config.vocab_size * config.hidden_size * num_trained * 4


def _squares(lengths: tuple[int, ...]) -> int:
    return sum(length**2 for length in lengths)


def measure(workload: Workload, micro_batch_tokens: int | None, num_updates: int) -> Measured:
    """Alternate updates and measurements of the peak."""
    dtype = DTYPES[workload.precision]
    student, teacher = random_model(0), random_model(1).to(dtype)
    optimizer = make_optimizer(student, OptimConfig())
    models = ModelPair(student, Teacher(teacher), Divergence("forward_kl"), dtype, (11, 12, 13))
    pairs = zip(workload.prompts(), workload.completions(0), strict=True)
    sequences = [TrainingSequence(prompt, prompt, target, number) for number, (prompt, target) in enumerate(pairs)]
    cpu = torch.device("cpu")
    keep_freed_memory(cpu)
    max_tokens = pass_tokens(micro_batch_tokens, student, None, torch.float32, None)
    batches = split_into_micro_batches(sequences, max_tokens=max_tokens, device=cpu)
    seconds, peaks = [], []
    for number in range(NUM_WARM_UP + num_updates):
        peaks.append(
            max(_rate(*(torch.randn(shape).to(dtype) for shape in ((m, k), (k, n)))) for m, k, n in PEAK_SHAPES)
        )
        took = optimizer_step(models, batches, optimizer, max_grad_norm=MAX_GRAD_NORM)["step_seconds"]
        if number >= NUM_WARM_UP:
            seconds.append(took)
    return Measured(statistics.median(seconds), statistics.median(peaks), work_of(student, batches))


def main() -> int:
    """Run the command line; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["usual", "usual-bf16"])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--micro-batch-tokens", type=int, help="none: what a run takes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS / "utilisation.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.stderr.write(f"about {len(options.workloads) * (NUM_WARM_UP + options.updates) * 20 / 60:.0f} minutes\n")
    lines = ["# The update's share of the machine's matrix-multiply peak", ""]
    lines += [f"SmolLM2-135M's shape, {options.threads} threads, medians of {options.updates} updates; to reach: 55 %."]
    lines += ["The formula is at the head of benchmarks/utilisation.py.", *describe_machine(("torch", "transformers"))]
    lines += [f"Load average before: {os.getloadavg()[0]:.1f}.", ""]
    lines += [
        "| workload | dtype | peak GFLOP/s | work GFLOP | update s | utilisation |",
        "|---|---|---:|---:|---:|---:|",
    ]
    reached = True
    for name in options.workloads:
        workload = WORKLOADS[name]
        found = measure(workload, options.micro_batch_tokens, options.updates)
        lines.append(
            f"| {workload} | {workload.precision} | {found.peak_flops / 1e9:.0f} | {found.work_flops / 1e9:,.0f} "
            f"| {found.update_seconds:.2f} | {100 * found.utilisation:.0f} % |"
        )
        reached = reached and found.utilisation >= TARGET
        sys.stderr.write(f"{lines[-1]}\n")
    options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
