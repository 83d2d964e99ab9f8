"""What a stage gets and returns, and how it measures time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trd_engine.doctor.estimate import local_hardware
from trd_estimate.hardware import Hardware


@dataclass(frozen=True)
class Case:
    """Where and how large a stage runs."""

    device: torch.device
    small: bool
    """Rehearse at a small size."""
    scratch: Path
    """An empty folder."""

    @property
    def is_gpu(self) -> bool:
        """True on CUDA."""
        return self.device.type == "cuda"

    @property
    def hardware(self) -> Hardware:
        """The device's peak figures; zeros on a CPU."""
        return local_hardware(self.device)


@dataclass(frozen=True)
class Figure:
    """One number or text of a stage."""

    name: str
    measured: float | str
    unit: str = ""
    predicted: float | None = None
    """By arithmetic or the engine's estimate; None if there is no prediction."""


Stage = Callable[[Case], list[Figure]]
"""Raises if something is wrong."""


def expect(holds: bool, message: str) -> None:
    """Fail the stage with a message if something does not hold."""
    if not holds:
        raise AssertionError(message)


def rounded(number: float) -> float:
    """Return a number with four digits."""
    return float(f"{number:.4g}")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the error's norm, relative to the expected one's."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))


def seconds_of(work: Callable[[], object], case: Case, repeats: int = 5) -> float:
    """Return the median time of `work` after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        synchronize(case)
        started_at = time.perf_counter()
        work()
        synchronize(case)
        times.append(time.perf_counter() - started_at)
    return sorted(times[1:])[repeats // 2]


def synchronize(case: Case) -> None:
    """Wait for the GPU."""
    if case.is_gpu:
        torch.cuda.synchronize(case.device)


def reset_peak(case: Case) -> None:
    """Start to measure the peak of the GPU's memory."""
    if case.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(case.device)


def peak_gb(case: Case) -> float:
    """Return the GPU's peak memory in GB since `reset_peak`; 0 on a CPU."""
    return rounded(torch.cuda.max_memory_allocated(case.device) / 1e9) if case.is_gpu else 0.0
