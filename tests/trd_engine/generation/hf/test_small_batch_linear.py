from __future__ import annotations

import copy
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from trd_engine.generation.hf.small_batch_linear import MAX_ROWS, MIN_REORDER_ROWS, REORDER_AFTER, skinny_products


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


def adapted(*, bias: bool, **options: Any) -> PeftModel:
    """Make two layers with an adapter each, whose weights are all random."""
    layers = OrderedDict(first=nn.Linear(48, 96, bias=bias), act=nn.GELU(), second=nn.Linear(96, 20, bias=bias))
    model = get_peft_model(nn.Sequential(layers), LoraConfig(r=4, target_modules=["first", "second"], **options))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 3, MAX_ROWS, MAX_ROWS + 1])
@pytest.mark.parametrize("has_adapter", [True, False])
def test_an_adapter_is_added_and_left_out_as_ever(bias: bool, num_rows: int, has_adapter: bool) -> None:
    torch.manual_seed(0)
    model = adapted(bias=bias)
    rows = torch.randn(num_rows, 48)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad(), nullcontext() if has_adapter else model.disable_adapter():
        expected = copy.deepcopy(model).double()(rows.double())
        with skinny_products(model):
            found = [model(rows) for _ in range(REORDER_AFTER + 2)]
    for values in found:
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}])
def test_what_is_more_than_an_adapter_is_left_to_peft(options: dict[str, Any]) -> None:
    model = adapted(bias=True, **options)
    model.train("lora_dropout" in options)
    with skinny_products(model):
        assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, LoraLayer))


def test_a_layer_that_is_called_in_two_places_is_restored_once() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Sequential(layer))
    with skinny_products(model):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)


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
