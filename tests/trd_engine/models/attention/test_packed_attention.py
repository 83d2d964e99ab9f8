"""Packed attention against its formula in float64, and what the GPU's kernel is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.utils import _apply_to_tensors

from trd_engine.models.attention import packed as packed_attention
from trd_engine.models.attention.packed import PackedMask, Segments, UnservedAttentionError, attention

LENGTHS = (4, 4, 9, 1, 13)
HEADS, GROUPS, SIZE = 4, 2, 8


class Layer(nn.Module):
    """What transformers passes as the calling layer."""

    is_causal = True
    num_key_value_groups = HEADS // GROUPS


def make_qkv(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, sum(LENGTHS), SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    query, key, value = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return query, key, value


def mask_of(window: int | None) -> PackedMask:
    return PackedMask(Segments(LENGTHS, torch.device("cpu")), window)


def reference(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling: float, softcap: float | None
) -> Tensor:
    """Compute softmax(cap(q kᵀ · scale)) v over the whole row, with every pair that may not meet at −∞; [1, T, A,
    D]."""
    owner_T = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place_T = torch.arange(sum(LENGTHS))
    ahead_TT = place_T[:, None] - place_T[None, :]
    seen_TT = (owner_T[:, None] == owner_T[None, :]) & (ahead_TT >= 0)
    if window is not None:
        seen_TT &= ahead_TT < window
    key, value = (x.repeat_interleave(HEADS // key.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen_TT, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


CASES = [(None, 0.35, None), (3, 0.35, None), (None, 1.7, 0.5), (3, 1.7, 0.5), (1, 0.35, None), (100, 0.35, None)]


@pytest.mark.parametrize(("window", "scaling", "softcap"), CASES)
def test_values_and_gradients_are_the_formula(window: int | None, scaling: float, softcap: float | None) -> None:
    inputs = make_qkv()
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found, _ = attention(Layer(), *inputs, mask_of(window), scaling=scaling, softcap=softcap)
    expected = reference(exact[0], exact[1], exact[2], window, scaling, softcap)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    found.square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_autocast", [True, False])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("has_bf16_matmul", "rounding"), [(True, 0.05), (False, 2**-8)])
def test_16_bits_are_as_near_as_they_can_be(
    with_autocast: bool, window: int | None, has_bf16_matmul: bool, rounding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast queries and keys come in fp32, from the rotation, and values from a product; else all in bf16."""
    monkeypatch.setattr(packed_attention, "has_bf16_matmul", lambda: has_bf16_matmul)
    dtypes = (torch.float32, torch.float32, torch.bfloat16) if with_autocast else (torch.bfloat16,) * 3
    inputs = [x.detach().to(dtype).requires_grad_() for x, dtype in zip(make_qkv(), dtypes, strict=True)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=with_autocast):
        found, _ = attention(Layer(), *inputs, mask_of(window), scaling=0.35)
        with torch.no_grad():
            unwanted, _ = attention(Layer(), *inputs, mask_of(window), scaling=0.35)
    assert found.dtype == unwanted.dtype == torch.bfloat16
    expected = reference(exact[0], exact[1], exact[2], window, 0.35, None)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found.backward(upstream)
    expected.backward(upstream.double())
    # Computed in fp32 it is rounded once.
    torch.testing.assert_close(
        found.double(), expected, rtol=rounding, atol=0.4 * rounding if has_bf16_matmul else 1e-6
    )
    torch.testing.assert_close(unwanted.double(), expected, rtol=0.05, atol=0.02)
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        atol = 0.04 if has_bf16_matmul else 1e-5
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=rounding, atol=atol)


@pytest.mark.parametrize("groups_heads", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_is_asked_for_the_same(
    window: int | None, groups_heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here: what the kernel is given is interpreted by its documented meaning instead. Before torch 2.12 it has
    no grouped heads."""
    calls: list[dict[str, Any]] = []

    def documented(query_TAD: Tensor, key_TED: Tensor, value_TED: Tensor, *bounds: Any, **options: Any) -> Tensor:
        starts, other, longest, other_longest = bounds
        assert starts is other
        assert starts.dtype == torch.int32
        assert longest == other_longest == max(LENGTHS)
        assert query_TAD.is_contiguous()
        assert options.pop("enable_gqa", False) is groups_heads
        assert (key_TED.shape == query_TAD.shape) is not groups_heads
        calls.append(options)
        left, right = options["window_size"]
        assert right == 0
        assert starts.diff().tolist() == list(LENGTHS)
        rows = (x.transpose(0, 1).unsqueeze(0) for x in (query_TAD, key_TED, value_TED))
        return reference(*rows, None if left == -1 else left + 1, options["scale"], None).squeeze(0)

    inputs = make_qkv()
    expected, _ = attention(Layer(), *inputs, mask_of(window), scaling=0.35)
    monkeypatch.setattr(packed_attention, "varlen_attn", documented)
    monkeypatch.setattr(packed_attention, "_KERNEL_GROUPS_HEADS", groups_heads)
    monkeypatch.setattr(packed_attention, "_has_kernel", lambda query, value: True)
    found, _ = attention(Layer(), *inputs, mask_of(window), scaling=0.35)
    assert len(calls) == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    attention(Layer(), *inputs, mask_of(window), scaling=0.35, dropout=0.1)
    attention(Layer(), *inputs, mask_of(window), scaling=0.35, softcap=1.0)
    assert len(calls) == 1, "the kernel has neither dropout nor soft-cap"


def test_a_gpu_without_the_kernel_repeats_grouped_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, or before Ampere: none of torch's fused kernels that remain there takes grouped heads, and the whole
    scores would exist."""
    asked: list[tuple[int, int, bool]] = []

    def sdpa(query: Tensor, key: Tensor, value: Tensor, *, enable_gqa: bool, **_: Any) -> Tensor:
        asked.append((query.shape[1], key.shape[1], enable_gqa))
        assert value.shape == key.shape
        return torch.empty_like(query)

    monkeypatch.setattr(packed_attention, "scaled_dot_product_attention", sdpa)
    mask = mask_of(None)
    attention(Layer(), *make_qkv(), mask, scaling=0.35)
    with FakeTensorMode():
        there = (torch.empty(x.shape, device="cuda") for x in make_qkv())
        attention(Layer(), *there, mask, scaling=0.35)
    num_runs = len(mask.segments.runs)
    assert asked == [(HEADS, GROUPS, True)] * num_runs + [(HEADS, HEADS, False)] * num_runs


def test_all_layers_share_the_bounds_though_fsdp_copies_their_arguments() -> None:
    """It casts a layer's arguments to the passes' dtype by this function, which takes dataclasses apart."""
    mask = mask_of(None)
    copies = [_apply_to_tensors(lambda tensor: tensor, {"attention_mask": mask}) for _ in range(2)]
    assert {id(copy["attention_mask"].segments.bounds) for copy in copies} == {id(mask.segments.bounds)}


@pytest.mark.parametrize(
    "options", [{"s_aux": torch.zeros(HEADS)}, {"is_causal": False}, {"position_bias": torch.zeros(1)}]
)
def test_terms_that_are_not_computed_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnservedAttentionError):
        attention(Layer(), *make_qkv(), mask_of(None), scaling=0.35, **options)


def test_dropout_drops() -> None:
    torch.manual_seed(0)
    inputs = make_qkv()
    kept, _ = attention(Layer(), *inputs, mask_of(None), scaling=0.35, dropout=0.0)
    dropped, _ = attention(Layer(), *inputs, mask_of(None), scaling=0.35, dropout=0.5)
    assert not torch.allclose(kept, dropped)
