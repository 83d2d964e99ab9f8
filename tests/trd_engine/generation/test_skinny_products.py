from __future__ import annotations

import pytest
import torch
from torch import nn

from trd_engine.generation.skinny_products import MAX_ROWS, MIN_REORDER_ROWS, REORDER_AFTER, skinny_products


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, MAX_ROWS, MAX_ROWS + 1])
def test_the_products_are_the_usual_ones(bias: bool, num_rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96, bias=bias), nn.GELU(), nn.Linear(96, 20, bias=bias))
    rows = torch.randn(2, num_rows, 48)[:1]
    with torch.no_grad():
        expected = model.double()(rows.double())
        model.float()
        with skinny_products(model):
            found = [model(rows) for _ in range(REORDER_AFTER + 2)]  # before and after the weights are reordered
    for values in found:
        assert values.shape == expected.shape
        assert values.is_contiguous()
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)


def test_new_weights_are_seen_by_the_next_block() -> None:
    layer = nn.Linear(16, 16)
    rows = torch.ones(MIN_REORDER_ROWS, 16)
    with torch.no_grad():
        for value in (1.0, 2.0):
            layer.weight.fill_(value)
            layer.bias.zero_()
            with skinny_products(layer):
                for _ in range(REORDER_AFTER + 1):
                    last = layer(rows)
            assert torch.equal(last, torch.full((MIN_REORDER_ROWS, 16), 16.0 * value))


def test_the_model_is_as_it_was_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4))

    def stop(*_: object) -> None:
        assert "forward" in vars(model[0])
        raise ZeroDivisionError

    model.register_forward_hook(stop)
    with pytest.raises(ZeroDivisionError), skinny_products(model):
        model(torch.ones(1, 4))
    assert "forward" not in vars(model[0])


def test_gradients_flow_as_ever() -> None:
    layer = nn.Linear(4, 4)
    with skinny_products(layer):
        layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None


def test_other_dtypes_and_changed_layers_are_left_alone() -> None:
    half, replaced = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4)
    replaced.forward = lambda rows: rows * 2  # type: ignore[method-assign]
    with skinny_products(nn.ModuleList([half, replaced])), torch.no_grad():
        assert "forward" not in vars(half)
        assert torch.equal(replaced(torch.ones(1, 4)), torch.full((1, 4), 2.0))
    assert "forward" in vars(replaced)
