"""How the one-pass loss runs: what it allocates, that it waits for no device, that it repeats itself, and that in bf16
the size of a chunk is no part of what it says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trd_engine.distillation.losses.loss_case import projections
from trd_engine.distillation.losses import linear_divergence as fused_loss
from trd_engine.distillation.losses import projection, row_kernels
from trd_engine.distillation.losses.chunked_pass import SPARSE_SHARE
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import BLOCK_BYTES_CPU, StatisticsRequest, linear_divergence

N, H, G, V = 90, 16, 8, 2000
CHUNK = 8
DIVERGENCES = [
    Divergence("forward_kl"),
    Divergence("reverse_kl", temperature=0.7),
    Divergence("jsd", token_clip=0.1),
    Divergence("forward_kl", "top_k"),
    Divergence("forward_kl", "top_k", teacher_top_k=V // 4),
    Divergence("reverse_kl", "sampled"),
]


def inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "student_hidden_NH": (N, H),
        "student_head_VH": (V, H),
        "teacher_hidden_NG": (N, G),
        "teacher_head_VG": (V, G),
    }
    tensors = {name: torch.randn(*shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}
    tensors["student_hidden_NH"].requires_grad_()
    tensors["student_head_VH"].requires_grad_()
    return tensors


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation's result owns, except for views of `given`."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                self.num_elements = max(self.num_elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_nothing_is_larger_than_a_chunk_of_logits_or_the_head(divergence: Divergence, dtype: torch.dtype) -> None:
    tensors, token_ids = inputs(dtype), torch.zeros(N, dtype=torch.long)
    with LargestTensor(tensors.values()) as largest:
        loss, _, _ = linear_divergence(
            *projections(*tensors.values()),
            divergence,
            token_ids_N=token_ids,
            chunk_tokens=CHUNK,
            statistics=StatisticsRequest((1, 2)),
        )
        loss.backward()
    assert V * H <= largest.num_elements <= max(V * H, CHUNK * V)
    assert largest.num_elements < N * V


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_no_value_is_waited_for(divergence: Divergence) -> None:
    """On the meta device there are no values: every read by the host is an error."""
    tensors = inputs(device="meta")
    loss, per_token, statistics = linear_divergence(
        *projections(*tensors.values()),
        divergence,
        token_weights_N=torch.empty(N, device="meta"),
        token_ids_N=torch.empty(N, dtype=torch.long, device="meta"),
        chunk_tokens=CHUNK,
        statistics=StatisticsRequest((1, 2)),
    )
    loss.backward()
    assert per_token.shape == statistics.student_entropy_N.shape == (N,)
    assert tensors["student_head_VH"].grad is not None
    assert tensors["student_head_VH"].grad.shape == (V, H)


class OperationNames(TorchDispatchMode):
    """Records the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_no_operation_reads_a_value(divergence: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, where values exist: also for the kernels, with which test_row_kernels.py runs this test."""
    monkeypatch.setattr(row_kernels, "ROWS", 32)
    tensors, token_ids, operations = inputs(), torch.arange(N), OperationNames()
    request = StatisticsRequest((1, 2), modes=True, watched_ids_N=token_ids)
    monkeypatch.setattr(fused_loss, "check_token_ids", lambda *_: None)  # and a read that is made on a CPU alone
    with operations:
        linear_divergence(*projections(*tensors.values()), divergence, token_ids_N=token_ids, statistics=request)
    assert "mm" in operations.names
    assert not operations.names & {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2"}


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_two_runs_are_bitwise_equal_also_with_deterministic_kernels(divergence: Divergence) -> None:
    runs = []
    for deterministic in (False, False, True):
        tensors, token_ids = inputs(), torch.arange(N)
        torch.use_deterministic_algorithms(deterministic)
        try:
            loss, per_token = linear_divergence(
                *projections(*tensors.values()), divergence, token_ids_N=token_ids, chunk_tokens=CHUNK
            )
            loss.backward()
        finally:
            torch.use_deterministic_algorithms(False)
        runs.append((loss, per_token, tensors["student_hidden_NH"].grad, tensors["student_head_VH"].grad))
    for other in runs[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(runs[0], other, strict=True))


def test_autograd_takes_the_gradient_of_the_head_over_without_a_copy() -> None:
    tensors = inputs()
    loss, _ = linear_divergence(*projections(*tensors.values()), Divergence())
    node = loss.grad_fn
    assert node is not None
    address = node.gradients[1].data_ptr()
    loss.backward()
    assert tensors["student_head_VH"].grad is not None
    assert tensors["student_head_VH"].grad.data_ptr() == address


def test_a_frozen_head_costs_no_room_for_its_gradient() -> None:
    tensors = inputs()
    tensors["student_head_VH"].requires_grad_(False)
    with LargestTensor(tensors.values()) as largest:
        loss, _ = linear_divergence(*projections(*tensors.values()), Divergence(), chunk_tokens=1)
        loss.backward()
    assert largest.num_elements < V * H


def test_the_top_k_tokens_rows_of_the_head_are_gathered_within_a_blocks_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_NH, head_VH = torch.randn(N, 700, generator=generator), torch.randn(V, 700, generator=generator)
    hidden_NH.requires_grad_()
    divergence = Divergence("forward_kl", "top_k", teacher_top_k=V // SPARSE_SHARE)
    with LargestTensor([hidden_NH, head_VH]) as largest:
        loss, _ = linear_divergence(*projections(hidden_NH, head_VH, hidden_NH.detach(), head_VH), divergence)
        loss.backward()
    assert largest.num_elements <= BLOCK_BYTES_CPU // 4


KINDS = [
    Divergence("forward_kl"),
    Divergence("reverse_kl"),
    Divergence("jsd"),
    *(Divergence(kind, support) for kind in ("forward_kl", "reverse_kl") for support in ("top_k", "sampled")),
    Divergence("forward_kl", "top_k", teacher_top_k=V // 4),
]


@pytest.mark.parametrize("has_bf16_matmul", [True, False], ids=["with bf16 products", "without"])
@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_the_chunk_size_changes_bf16_by_its_rounding_alone(
    divergence: Divergence, has_bf16_matmul: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token's logits are products of its own row, the same in any chunk except for the order of a sum in fp32, which
    moves the rare logit to the next bf16 number. The head's gradient is a sum of the chunks' products, each rounded
    to bf16, by 2⁻⁹ of itself at most, before it is added in fp32; a hidden state's is one such product."""
    monkeypatch.setattr(projection, "has_bf16_matmul", lambda: has_bf16_matmul)
    *whole_values, whole_hidden, whole_head = _bf16_results(divergence, N)
    for chunk_tokens in (1, 7, 64, N - 1):
        *values, hidden, head = _bf16_results(divergence, chunk_tokens)
        for ours, theirs in zip(values, whole_values, strict=True):
            assert _relative_error(ours, theirs) < 1e-3
        assert _relative_error(hidden, whole_hidden) < 2**-8
        assert _relative_error(head, whole_head) < 2**-8


def _bf16_results(divergence: Divergence, chunk_tokens: int) -> list[Tensor]:
    """Return the loss, each token's D, and the gradients of the hidden states and of the head."""
    tensors = inputs(torch.bfloat16)
    with torch.no_grad():
        for name in ("student_head_VH", "teacher_head_VG"):
            tensors[name] /= 4  # so that no token's weight of exp(log q − log p) drowns the others'
    loss, per_token = linear_divergence(
        *projections(*tensors.values()), divergence, token_ids_N=torch.arange(N), chunk_tokens=chunk_tokens
    )
    trained = (tensors["student_hidden_NH"], tensors["student_head_VH"])
    return [loss.detach(), per_token, *torch.autograd.grad(loss, trained)]


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
