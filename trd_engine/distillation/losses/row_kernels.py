"""The work between the matrix products by Triton kernels: where they run, their launches, and the numbers per row.

The kernels read a logit twice or three times and write its gradient once; nothing else has the vocabulary's size. Which
implementation runs is a stated rule (docs/numerics.md): the kernels on a GPU with Triton, plain operations elsewhere;
the environment variable TRD_LOSS_KERNEL, `auto`, `triton` or `torch`, forces one of them.

Shapes: R rows, V the shared vocabulary, E the epistemic tokens.
"""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.gradient import sampled_divergence
from trd_engine.distillation.losses.token_statistics import TokenStatistics, WantedStatistics
from trd_engine.models.head import LogitShape

ROWS = 1
"""Rows per program of a kernel."""
BLOCK = 2048
"""Tokens of the vocabulary per loop of a kernel: 16 bytes of bf16 logits per thread and load."""
_KINDS = {"forward_kl": 1, "reverse_kl": 2, "jsd": 3}
_SAMPLED = 4


def uses_kernels(device: torch.device) -> bool:
    """Return whether the kernels run on this device, by TRD_LOSS_KERNEL or else by what is there.

    Raises ValueError if TRD_LOSS_KERNEL is not a choice, or asks for kernels that cannot run.
    """
    choice = os.environ.get("TRD_LOSS_KERNEL", "auto")
    if choice not in ("auto", "triton", "torch"):
        raise ValueError(f"TRD_LOSS_KERNEL is {choice!r}: use auto, triton or torch")
    if choice == "torch" or (choice == "auto" and device.type != "cuda"):
        return False
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    fault = "needs a GPU" if device.type != "cuda" and not is_interpreted else _fault(device)
    if not fault:
        return True
    if choice == "triton":
        raise ValueError(f"TRD_LOSS_KERNEL is triton, which {fault}: use auto or torch")
    return False


@lru_cache
def _fault(device: torch.device) -> str:
    """Try a kernel; return what prevents it, or nothing. Warns once if Triton is there and fails: the loss is slower
    then."""
    if importlib.util.find_spec("triton") is None:
        return "is not installed"
    try:
        _model_sums(torch.zeros(1, 8, device=device), LogitShape(), 1.0, torch.float32)
    except Exception as error:  # noqa: BLE001 - whatever fails here, plain operations compute the same loss
        fault = f"does not run on {device}: {type(error).__name__}: {error}"[:500]
        warnings.warn(f"the loss is computed by plain operations, because Triton {fault}", stacklevel=2)
        return fault
    return ""


@dataclass(frozen=True)
class LogitRows:
    """Raw logits [R, V] of both models; the student's are overwritten by the gradient."""

    student_RV: Tensor
    teacher_RV: Tensor
    student_shape: LogitShape
    teacher_shape: LogitShape
    dtype: torch.dtype
    """Of the arithmetic."""

    def statistics(self, wanted: WantedStatistics, rows: slice, token_ids_R: Tensor | None) -> TokenStatistics:
        """Compute the statistics of these rows, at temperature 1."""
        student = _model_sums(self.student_RV, self.student_shape, 1.0, self.dtype)
        teacher = _model_sums(self.teacher_RV, self.teacher_shape, 1.0, self.dtype, wanted)
        ids_R1 = None if token_ids_R is None else token_ids_R.unsqueeze(-1)
        watched_R1 = None if wanted.watched_ids_N is None else wanted.watched_ids_N[rows].unsqueeze(-1)
        epistemic_RE = self.teacher_RV.index_select(-1, wanted.epistemic_ids_E)
        return TokenStatistics(
            student_entropy_N=student.entropy,
            teacher_entropy_N=teacher.entropy,
            top1_agreement_N=(student.token_R == teacher.token_R).to(self.dtype),
            teacher_epistemic_mass_N=teacher.log_probs(epistemic_RE).exp().sum(-1),
            student_logprob_N=None if ids_R1 is None else student.log_prob(self.student_RV, ids_R1),
            teacher_logprob_N=None if ids_R1 is None else teacher.log_prob(self.teacher_RV, ids_R1),
            teacher_path_mass_N=teacher.path_mass(0) if wanted.modes else None,
            teacher_second_path_mass_N=teacher.path_mass(1) if wanted.modes else None,
            teacher_watched_mass_N=None if watched_R1 is None else teacher.log_prob(self.teacher_RV, watched_R1).exp(),
        )

    def divergence(self, divergence: Divergence, token_ids_R: Tensor | None) -> RowDivergence:
        """Compute the divergence of each row before the clip."""
        inverse = 1.0 / divergence.temperature
        student = _model_sums(self.student_RV, self.student_shape, inverse, self.dtype)
        teacher = _model_sums(self.teacher_RV, self.teacher_shape, inverse, self.dtype)
        numbers_4R = torch.stack((student.largest_R, student.log_sum, teacher.largest_R, teacher.log_sum))
        zero_R = torch.zeros_like(student.largest_R)
        if divergence.support == "sampled":
            assert token_ids_R is not None
            ids_R1 = token_ids_R.unsqueeze(-1)
            log_ratio_R = teacher.log_prob(self.teacher_RV, ids_R1) - student.log_prob(self.student_RV, ids_R1)
            divergence_R, slope_R = sampled_divergence(log_ratio_R, divergence.kind)
            return RowDivergence(self, divergence, numbers_4R, divergence_R, slope_R, zero_R)
        sums_2R = torch.empty_like(numbers_4R[:2])
        _launch("divergence_sums", numbers=numbers_4R, sums=sums_2R, **self.arguments(divergence))
        first_R, second_R = sums_2R
        if divergence.effective_kind == "jsd":
            beta = divergence.beta
            mixed_R = beta * first_R + (1 - beta) * second_R
            return RowDivergence(self, divergence, numbers_4R, mixed_R, torch.full_like(zero_R, 1 - beta), second_R)
        return RowDivergence(self, divergence, numbers_4R, first_R, torch.ones_like(zero_R), first_R)

    def arguments(self, divergence: Divergence) -> dict[str, Any]:
        """Arguments that the kernels over both models share."""
        kind = divergence.effective_kind
        return {
            "student": self.student_RV,
            "teacher": self.teacher_RV,
            "student_stride": self.student_RV.stride(0),
            "teacher_stride": self.teacher_RV.stride(0),
            "num_shared": self.student_RV.shape[1],
            "num_rows": len(self.student_RV),
            "KIND": _SAMPLED if divergence.support == "sampled" else _KINDS[kind],
            "INVERSE": 1.0 / divergence.temperature,
            "LOG_ODDS": math.log(divergence.beta) - math.log1p(-divergence.beta) if kind == "jsd" else 0.0,
            "LOG_REST": math.log1p(-divergence.beta) if kind == "jsd" else 0.0,
            "STUDENT_SCALE": float(self.student_shape.scale),
            "STUDENT_CAP": float(self.student_shape.soft_cap or 0.0),
            "TEACHER_SCALE": float(self.teacher_shape.scale),
            "TEACHER_CAP": float(self.teacher_shape.soft_cap or 0.0),
            "ACC": _triton_dtype(self.dtype),
        }


@dataclass(frozen=True)
class RowDivergence:
    """The divergence of each row, and what its gradient needs."""

    logits: LogitRows
    divergence: Divergence
    numbers_4R: Tensor
    """Largest logit and log-sum of student and teacher."""
    divergence_R: Tensor
    """In nats, before the clip."""
    slope_R: Tensor
    """A factor of the gradient's closed form."""
    subtracted_R: Tensor
    """What the closed form subtracts."""

    def write_gradient(self, factor_R: Tensor, weights_R: Tensor, token_ids_R: Tensor | None) -> None:
        """Write `factor_R` times the gradient of the tempered logits, chained to the student's raw ones, in their
        place; exactly 0 in rows of weight 0."""
        num_shared = self.logits.student_RV.shape[1]
        numbers_6R = torch.cat((self.numbers_4R, torch.stack((factor_R * self.slope_R, self.subtracted_R))))
        _launch(
            "write_gradient",
            num_blocks=-(-num_shared // BLOCK),
            token_ids=weights_R if token_ids_R is None else token_ids_R,
            weights=weights_R,
            numbers=numbers_6R,
            **self.logits.arguments(self.divergence),
        )


@dataclass(frozen=True)
class _ModelSums:
    """Sums over the vocabulary of one model's rows, with x = (logit − largest) / temperature."""

    shape: LogitShape
    inverse: float
    """1 / temperature."""
    largest_R: Tensor
    sum_R: Tensor
    """Σ e^x."""
    moment_R: Tensor
    """Σ x e^x."""
    token_R: Tensor
    """The most likely token, as a floating-point number."""
    paths_2R: Tensor
    """The two largest logits of tokens that are not epistemic; empty if they were not wanted."""

    @property
    def log_sum(self) -> Tensor:
        return self.sum_R.log()

    @property
    def entropy(self) -> Tensor:
        return self.log_sum - self.moment_R / self.sum_R

    def log_probs(self, raw_RX: Tensor) -> Tensor:
        """Return the log-probabilities of raw logits."""
        logits_RX = self.shape.apply(raw_RX.to(self.largest_R.dtype))
        return (logits_RX - self.largest_R.unsqueeze(-1)) * self.inverse - self.log_sum.unsqueeze(-1)

    def log_prob(self, raw_RV: Tensor, ids_R1: Tensor) -> Tensor:
        return self.log_probs(raw_RV.gather(-1, ids_R1)).squeeze(-1)

    def path_mass(self, place: int) -> Tensor:
        return ((self.paths_2R[place] - self.largest_R) * self.inverse - self.log_sum).exp()


def _model_sums(
    raw_RV: Tensor, shape: LogitShape, inverse: float, dtype: torch.dtype, wanted: WantedStatistics | None = None
) -> _ModelSums:
    num_rows, num_shared = raw_RV.shape
    with_modes = wanted is not None and wanted.modes
    skipped_V = raw_RV
    if wanted is not None and wanted.modes:
        skipped_V = torch.zeros(num_shared, dtype=torch.int8, device=raw_RV.device)
        skipped_V.index_fill_(0, wanted.epistemic_ids_E, 1)
    sums_FR = torch.empty(6 if with_modes else 4, num_rows, dtype=dtype, device=raw_RV.device)
    _launch(
        "model_sums",
        raw=raw_RV,
        skipped=skipped_V,
        sums=sums_FR,
        stride=raw_RV.stride(0),
        num_shared=num_shared,
        num_rows=num_rows,
        SCALE=float(shape.scale),
        SOFT_CAP=float(shape.soft_cap or 0.0),
        INVERSE=inverse,
        MODES=with_modes,
        ACC=_triton_dtype(dtype),
    )
    return _ModelSums(shape, inverse, sums_FR[0], sums_FR[1], sums_FR[2], sums_FR[3], paths_2R=sums_FR[4:])


def _launch(kernel: str, *, num_blocks: int = 1, **arguments: Any) -> None:
    """Launch a kernel over all rows, and over `num_blocks` blocks of the vocabulary."""
    from trd_engine.distillation.losses import triton_kernels  # imports triton, which may not be there

    device = next(argument.device for argument in arguments.values() if isinstance(argument, Tensor))
    grid = (-(-arguments["num_rows"] // ROWS), num_blocks)
    # Triton launches on the current device, whatever its arguments' device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if grid[0]:
            getattr(triton_kernels, kernel)[grid](**arguments, ROWS=ROWS, BLOCK=BLOCK, num_warps=8)


def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl  # type: ignore[import-untyped]

    return tl.float64 if dtype == torch.float64 else tl.float32
