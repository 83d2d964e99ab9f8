"""The work between the matrix products by Triton kernels: where they run, their launches, and the numbers per row.

The kernels read a logit twice, for the JSD three times, and write its gradient once; nothing else has the vocabulary's
size. Support top_k has no kernel for its divergence: torch's top-k reads the teacher's logits, and the rest is of size
[R, K]; its statistics come from the same kernel as the others. Which
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
from trd_engine.models.head import LogitTransform

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
    choice = os.environ.get("TRD_LOSS_KERNEL", "").strip() or "auto"
    if choice not in ("auto", "triton", "torch"):
        raise ValueError(f"TRD_LOSS_KERNEL is {choice!r}: use auto, triton or torch")
    if choice == "torch" or (choice == "auto" and device.type != "cuda"):
        return False
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    fault = "needs a GPU" if device.type != "cuda" and not is_interpreted else kernel_fault(device)
    if not fault:
        return True
    if choice == "triton":
        raise ValueError(f"TRD_LOSS_KERNEL is triton, which {fault}: use auto or torch")
    return False


@lru_cache
def kernel_fault(device: torch.device) -> str:
    """Try a kernel on `device`; return what prevents it, or nothing.

    Warns once if Triton is there and fails: the loss is slower then.
    """
    if importlib.util.find_spec("triton") is None:
        return "is not installed"
    try:
        logits_RV = torch.zeros(1, 8, device=device)
        LogitRows(logits_RV, logits_RV, LogitTransform(), LogitTransform(), torch.float32).sums(Divergence())
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
    student_transform: LogitTransform
    teacher_transform: LogitTransform
    dtype: torch.dtype
    """Dtype of the arithmetic."""

    def sums(self, divergence: Divergence, wanted: WantedStatistics | None = None) -> PairSums:
        """Read both models once: the sums of `divergence`, and those of the teacher's modes if they are wanted."""
        num_rows, num_shared = self.student_RV.shape
        with_modes = wanted is not None and wanted.modes
        skipped_V = self.student_RV
        if wanted is not None and wanted.modes:
            skipped_V = torch.zeros(num_shared, dtype=torch.int8, device=self.student_RV.device)
            skipped_V.index_fill_(0, wanted.epistemic_ids_E, 1)
        sums_FR = torch.empty(11 if with_modes else 9, num_rows, dtype=self.dtype, device=self.student_RV.device)
        arguments = self.arguments(divergence)
        for unused in ("LOG_ODDS", "LOG_REST"):
            del arguments[unused]
        _launch("pair_sums", skipped=skipped_V, sums=sums_FR, MODES=with_modes, **arguments)
        inverse = 1.0 / divergence.temperature
        s1_R, s2_R, s3_R, s4_R, t1_R, t2_R, t3_R, t4_R, cross_R, *paths = sums_FR
        student = _ModelSums(self.student_transform, inverse, s1_R, s2_R, s3_R, s4_R, ())
        teacher = _ModelSums(self.teacher_transform, inverse, t1_R, t2_R, t3_R, t4_R, tuple(paths))
        return PairSums(student, teacher, cross_R)

    def statistics(
        self, sums: PairSums, wanted: WantedStatistics, rows: slice, token_ids_R: Tensor | None
    ) -> TokenStatistics:
        """Compute the statistics of these rows from sums at temperature 1."""
        student, teacher = sums.student, sums.teacher
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

    def divergence(self, sums: PairSums, divergence: Divergence, token_ids_R: Tensor | None) -> RowDivergence:
        """Compute the divergence of each row before the clip, from its sums."""
        student, teacher = sums.student, sums.teacher
        numbers_4R = torch.stack((student.largest_R, student.log_sum, teacher.largest_R, teacher.log_sum))
        one_R = torch.ones_like(student.largest_R)
        if divergence.support == "sampled":
            assert token_ids_R is not None
            ids_R1 = token_ids_R.unsqueeze(-1)
            log_ratio_R = teacher.log_prob(self.teacher_RV, ids_R1) - student.log_prob(self.student_RV, ids_R1)
            divergence_R, slope_R = sampled_divergence(log_ratio_R, divergence.kind)
            return RowDivergence(self, divergence, numbers_4R, divergence_R, slope_R, one_R)
        if divergence.effective_kind == "jsd":
            sums_2R, beta = torch.empty_like(numbers_4R[:2]), divergence.beta
            arguments = self.arguments(divergence)
            del arguments["KIND"]
            _launch("jsd_sums", numbers=numbers_4R, sums=sums_2R, **arguments)
            first_R, second_R = sums_2R
            mixed_R = beta * first_R + (1 - beta) * second_R
            return RowDivergence(self, divergence, numbers_4R, mixed_R, (1 - beta) * one_R, second_R)
        weigher, other = (teacher, student) if divergence.effective_kind == "forward_kl" else (student, teacher)
        divergence_R = sums.cross_R / weigher.sum_R + (other.log_sum - weigher.log_sum)
        return RowDivergence(self, divergence, numbers_4R, divergence_R, one_R, divergence_R)

    def arguments(self, divergence: Divergence) -> dict[str, Any]:
        """Return the arguments that the kernels over both models share."""
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
            "STUDENT_SCALE": float(self.student_transform.scale),
            "STUDENT_CAP": float(self.student_transform.soft_cap or 0.0),
            "TEACHER_SCALE": float(self.teacher_transform.scale),
            "TEACHER_CAP": float(self.teacher_transform.soft_cap or 0.0),
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
    """Divergence in nats, before the clip."""
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
class PairSums:
    """Sums over the vocabulary of both models' rows."""

    student: _ModelSums
    teacher: _ModelSums
    cross_R: Tensor
    """Σ e^y (y − x) for the forward KL, Σ e^x (x − y) for the reverse KL, with x and y as in `_ModelSums`."""


@dataclass(frozen=True)
class _ModelSums:
    """Sums over the vocabulary of one model's rows, with x = (logit − largest) / temperature."""

    transform: LogitTransform
    inverse: float
    """1 / temperature."""
    largest_R: Tensor
    sum_R: Tensor
    """Σ e^x."""
    moment_R: Tensor
    """Σ x e^x."""
    token_R: Tensor
    """The most likely token, as a floating-point number."""
    path_logits: tuple[Tensor, ...]
    """The two largest logits of tokens that are not epistemic, [R] each; empty if they were not wanted."""

    @property
    def log_sum(self) -> Tensor:
        return self.sum_R.log()

    @property
    def entropy(self) -> Tensor:
        return self.log_sum - self.moment_R / self.sum_R

    def log_probs(self, raw_RX: Tensor) -> Tensor:
        """Return the log-probabilities of raw logits."""
        logits_RX = self.transform.apply(raw_RX.to(self.largest_R.dtype))
        return (logits_RX - self.largest_R.unsqueeze(-1)) * self.inverse - self.log_sum.unsqueeze(-1)

    def log_prob(self, raw_RV: Tensor, ids_R1: Tensor) -> Tensor:
        return self.log_probs(raw_RV.gather(-1, ids_R1)).squeeze(-1)

    def path_mass(self, place: int) -> Tensor:
        return ((self.path_logits[place] - self.largest_R) * self.inverse - self.log_sum).exp()


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
