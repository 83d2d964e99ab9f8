"""Stages without a model: the machine's ceilings, the loss's values, and its time."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.figures import Case, Figure, expect, peak_gb, relative_error, reset_peak, rounded, seconds_of
from benchmarks.loss_contenders import Inputs, dense, liger, ours
from trd_engine.distillation.losses.divergence import Divergence, token_divergence
from trd_engine.distillation.losses.linear_divergence import Projection, StatisticsRequest, linear_divergence
from trd_engine.doctor import machine_checks
from trd_engine.doctor.findings import Machine

MAX_ERROR = 1e-5
"""Of the loss in fp32 against float64, relative, in the norm."""


def machine(case: Case) -> list[Figure]:
    """Versions, the bandwidth of a copy and the speed of a large product: the ceilings of all else."""
    num_bytes, side = (2**22, 256) if case.small else (2**32, 8192)
    dtype = torch.bfloat16 if case.is_gpu else torch.float32
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=case.device)
    copy_seconds = seconds_of(source.clone, case)
    matrix = torch.randn(side, side, device=case.device, dtype=dtype)
    product_seconds = seconds_of(lambda: matrix @ matrix, case)
    predicted = (case.hardware.bytes_per_second / 1e12, case.hardware.flops / 1e12)
    return [
        Figure("device", machine_checks.check_device(Machine(case.device, case.scratch))),
        Figure("copy", rounded(2 * num_bytes / copy_seconds / 1e12), "TB/s", predicted[0] or None),
        Figure("product", rounded(2 * side**3 / product_seconds / 1e12), "TFLOP/s", predicted[1] or None),
    ]


def loss_values(case: Case) -> list[Figure]:
    """Every kind, support, clip, bias and padded head against float64, by the kernels and by plain operations, with
    infinities in masked rows, and with no wait for the device."""
    implementations = ("triton", "torch") if case.is_gpu else ("torch",)
    worst = dict.fromkeys(implementations, 0.0)
    kinds = [*itertools.product(("forward_kl", "reverse_kl"), ("full", "top_k", "sampled")), ("jsd", "full")]
    for implementation, (kind, support), clip, with_bias, temperature in itertools.product(
        implementations, kinds, (0.0, 0.5), (False, True), (1.0, 0.7)
    ):
        divergence: Any = Divergence(kind, support, 32, temperature=temperature, token_clip=clip)  # type: ignore[arg-type]
        with _forced(implementation):
            error = _loss_error(case, divergence, with_bias=with_bias)
        worst[implementation] = max(worst[implementation], error)
        expect(error <= MAX_ERROR, f"{implementation}, {divergence}, bias {with_bias}: error {error:.1e}")
    return [Figure(f"largest error, {name}", rounded(error)) for name, error in worst.items()]


def _loss_error(case: Case, divergence: Divergence, *, with_bias: bool) -> float:
    """Return the largest relative error of D, and of the gradients of hidden states, head and bias."""
    num_tokens, sizes, vocabulary = 33, (48, 40), (300, 330) if case.small else (5000, 5300)
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(case.device)

    hidden, teacher_hidden = randn(num_tokens, sizes[0]), randn(num_tokens, sizes[1])
    head, teacher_head = randn(vocabulary[0], sizes[0]) / 4, randn(vocabulary[1], sizes[1]) / 4
    bias, teacher_bias = randn(vocabulary[0]), randn(vocabulary[1])
    weights = torch.rand(num_tokens, generator=generator).to(case.device)
    weights[::5] = 0.0
    ids = (torch.arange(num_tokens) * 7 % vocabulary[0]).to(case.device)
    kept = weights > 0
    leaves = [x.requires_grad_() for x in (hidden.masked_fill(~kept.unsqueeze(-1), float("inf")), head, bias)]
    request = StatisticsRequest((1, 2), modes=True, watched_ids_N=ids)
    with _no_synchronisation(case):
        loss, per_token, _ = linear_divergence(
            Projection(leaves[0], head, bias if with_bias else None),
            Projection(teacher_hidden, teacher_head, teacher_bias if with_bias else None),
            divergence,
            token_weights_N=weights,
            token_ids_N=ids,
            statistics=request,
        )
        loss.backward()
    exact = [x.detach()[kept].double() if x is leaves[0] else x.detach().double() for x in leaves]
    exact = [x.requires_grad_() for x in exact]
    student = exact[0] @ exact[1].T + (exact[2] if with_bias else 0.0)
    teacher = teacher_hidden[kept].double() @ teacher_head.double().T + (teacher_bias.double() if with_bias else 0.0)
    expected = token_divergence(student, teacher, divergence, token_ids_N=ids[kept])
    (weights[kept].double() * expected).sum().backward()
    pairs = [(per_token[kept], expected.detach())]
    for found, wanted in zip(leaves, exact, strict=True):
        if wanted.grad is not None and found.grad is not None:
            pairs.append((found.grad[kept] if found is leaves[0] else found.grad, wanted.grad))
    return max(relative_error(*pair) for pair in pairs)


def loss_time(case: Case) -> list[Figure]:
    """Milliseconds and peak memory of forward KL with both vocabularies, trained and frozen head: ours by the kernels
    and by plain operations, and dense."""
    return _times(
        case,
        {
            f"{name}{', frozen' if frozen else ''}": (partial(contender, frozen=frozen), 3 if frozen else 4)
            for (name, contender), frozen in itertools.product(
                {"ours": ours, "plain operations": _plainly, "dense": dense}.items(), (False, True)
            )
        },
    )


def liger_time(case: Case) -> list[Figure]:
    """Measure the same of Liger, plain and compiled, with a trained head: it has no frozen one."""
    if importlib.util.find_spec("liger_kernel") is None:
        return [Figure("Liger", "not installed")]
    plain, compiled = (partial(liger, chunk_size=1024, compiled=compiled) for compiled in (False, True))
    return _times(case, {"Liger": (plain, 4), "Liger, compiled": (compiled, 4)})


def _times(case: Case, contenders: Mapping[str, tuple[Callable[[Inputs], Tensor], int]]) -> list[Figure]:
    """Measure contenders, each with its number of products of hidden states and head."""
    num_tokens, hidden, vocabularies = (64, 32, (1000,)) if case.small else (8192, 4096, (151_936, 128_256))
    dtype = torch.bfloat16 if case.is_gpu else torch.float32
    found = []
    for vocabulary in vocabularies:
        inputs = Inputs.random(num_tokens, hidden, vocabulary, dtype, case.device)
        for name, (contender, num_products) in contenders.items():
            flops = 2 * num_tokens * vocabulary * hidden * num_products
            predicted = flops / case.hardware.flops * 1e3 if case.hardware.flops else None
            found += _time_and_peak(case, f"{name} {vocabulary}", predicted, inputs, contender)
        del inputs
    return found


def _time_and_peak(
    case: Case,
    name: str,
    predicted: float | None,
    inputs: Inputs,
    contender: Callable[[Inputs], Tensor],
) -> list[Figure]:
    """Measure one contender; one that does not fit has no figure."""

    def work() -> None:
        inputs.forget_gradients()
        contender(inputs)

    inputs.forget_gradients()
    reset_peak(case)
    try:
        milliseconds = rounded(seconds_of(work, case, repeats=3) * 1e3)
    except torch.OutOfMemoryError:
        return [Figure(name, "out of memory")]
    return [Figure(name, milliseconds, "ms", predicted), Figure(name, peak_gb(case), "GB at the peak, with the inputs")]


def _plainly(inputs: Inputs, *, frozen: bool) -> Tensor:
    with _forced("torch"):
        return ours(inputs, frozen=frozen)


@contextmanager
def _forced(implementation: str) -> Iterator[None]:
    """Compute the loss by one implementation."""
    before = os.environ.get("TRD_LOSS_KERNEL", "auto")
    os.environ["TRD_LOSS_KERNEL"] = implementation
    try:
        yield
    finally:
        os.environ["TRD_LOSS_KERNEL"] = before


@contextmanager
def _no_synchronisation(case: Case) -> Iterator[None]:
    """Make a wait for the GPU an error."""
    if not case.is_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
