"""One token's attention with shared key-value heads, against its formula in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trd_engine.models.attention.decoding import serves, shared_heads

ROWS, HEADS, GROUPS, COLUMNS, SIZE = 3, 6, 2, 11, 8


def make_qkv(num_queries: int = 1, num_groups: int = GROUPS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, HEADS, num_queries, SIZE), *2 * [(ROWS, num_groups, COLUMNS, SIZE)]]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def padding_mask() -> Tensor:
    mask = torch.ones(ROWS, 1, 1, COLUMNS, dtype=torch.bool)
    mask[0, ..., :4] = False
    mask[2, ..., :9] = False
    return mask


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("masked", [False, True])
def test_the_formula(masked: bool, scaling: float | None) -> None:
    query, key, value = make_qkv()
    mask = padding_mask() if masked else None
    assert serves(query, key, mask, {"scaling": scaling, "dropout": 0.0})
    found = shared_heads(query, key, value, mask, scaling=scaling)
    key, value = (x.double().repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * (SIZE**-0.5 if scaling is None else scaling)
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"s_aux": torch.zeros(HEADS)}, {"position_bias": torch.ones(1)}])
def test_other_terms_are_not_served(options: dict[str, Any]) -> None:
    query, key, _ = make_qkv()
    assert not serves(query, key, None, options)


def test_other_shapes_are_not_served() -> None:
    query, key, _ = make_qkv(num_queries=2)
    assert not serves(query, key, None, {})
    query, key, _ = make_qkv(num_groups=HEADS)
    assert not serves(query, key, None, {})
    query, key, _ = make_qkv()
    assert not serves(query, key, torch.ones(ROWS, HEADS, 1, COLUMNS, dtype=torch.bool), {})
