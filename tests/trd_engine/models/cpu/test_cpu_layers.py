from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from trd_engine.models.cpu import layers as cpu_layers_module
from trd_engine.models.cpu.layers import _RmsNorm, cpu_layers

EPSILON = 1e-6


@pytest.fixture(autouse=True)
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers are swapped whatever machine the tests run on."""
    monkeypatch.setattr(cpu_layers_module, "suits_mkl", lambda: False)


def linear_reference(layer: nn.Module, rows: Tensor) -> Tensor:
    weight, bias = layer.get_parameter("weight"), dict(layer.named_parameters()).get("bias")
    return linear(rows, weight, bias)


def norm_reference(layer: nn.Module, rows: Tensor) -> Tensor:
    return rows / (rows.square().mean(-1, keepdim=True) + EPSILON).sqrt() * layer.get_parameter("weight")


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "linear": (lambda: nn.Linear(48, 20, bias=False), linear_reference),
    "linear with bias": (lambda: nn.Linear(48, 20), linear_reference),
    "llama": (lambda: LlamaRMSNorm(48, EPSILON), norm_reference),
    "mistral": (lambda: MistralRMSNorm(48, EPSILON), norm_reference),
    "qwen3": (lambda: Qwen3RMSNorm(48, EPSILON), norm_reference),
    "torch": (lambda: nn.RMSNorm(48, EPSILON), norm_reference),
}


def gradients(values: Tensor, upstream: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [g.double() for g in torch.autograd.grad(values, inputs, upstream.to(values.dtype))]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (2, 3, 5)])
def test_values_and_gradients_are_those_of_double_precision(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    make, reference = LAYERS[name]
    layer = make()
    with torch.no_grad():
        layer.get_parameter("weight").normal_()
    # Rows of very different sizes, so that epsilon counts in some.
    rows = (torch.randn(*shape, 48) * torch.randn(*shape, 1).mul(3).exp()).requires_grad_()
    with cpu_layers(layer):
        assert "forward" in vars(layer)
        found = layer(rows)
        upstream = torch.randn_like(found)
        found_gradients = gradients(found, upstream, [rows, *layer.parameters()])
    exact_rows = rows.detach().double().requires_grad_()
    expected = reference(layer.double(), exact_rows)
    expected_gradients = gradients(expected, upstream, [exact_rows, *layer.parameters()])
    assert found.shape == expected.shape
    for one, other in zip([found, *found_gradients], [expected, *expected_gradients], strict=True):
        assert (one - other).norm() <= 2e-6 * other.norm()


def test_the_norms_gradient_is_the_functions_own() -> None:
    torch.manual_seed(0)
    rows = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    weight_H = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RmsNorm.apply(x, w, EPSILON), (rows, weight_H))


@pytest.mark.parametrize(
    "layer",
    [Gemma3RMSNorm(16), nn.LayerNorm(16), nn.Embedding(4, 16), LlamaRMSNorm(16).bfloat16(), nn.Linear(16, 16).double()],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_not_known_is_left_alone(layer: nn.Module) -> None:
    with cpu_layers(layer):
        assert "forward" not in vars(layer)


def test_a_norm_is_known_by_what_it_does_and_not_by_its_weight() -> None:
    class Unweighted(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) / self.weight

    with cpu_layers(plain := LlamaRMSNorm(16), other := Unweighted(16)):  # both weights are ones
        assert "forward" in vars(plain)
        assert "forward" not in vars(other)


def test_linear_layers_stay_mkls_on_its_makers_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layers_module, "suits_mkl", lambda: True)
    with cpu_layers(product := nn.Linear(16, 8), norm := LlamaRMSNorm(16)):
        assert "forward" not in vars(product)
        assert "forward" in vars(norm)


def test_autocast_is_obeyed() -> None:
    layer, rows = nn.Linear(16, 8), torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(rows)
        with cpu_layers(layer):
            found = layer(rows)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_a_frozen_weight_gets_no_gradient() -> None:
    layer, norm = nn.Linear(8, 8).requires_grad_(False), LlamaRMSNorm(8).requires_grad_(False)
    rows = torch.randn(3, 8, requires_grad=True)
    with cpu_layers(layer, norm):
        norm(layer(rows)).sum().backward()
    assert rows.grad is not None
    assert all(parameter.grad is None for parameter in (*layer.parameters(), *norm.parameters()))


def test_the_model_is_as_it_was_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ZeroDivisionError), cpu_layers(model):
        raise ZeroDivisionError
    assert "forward" not in vars(model[0])


def test_a_layer_that_others_have_changed_is_left_to_them() -> None:
    layer = nn.Linear(4, 4)
    layer.forward = changed = lambda rows: rows  # type: ignore[method-assign, assignment]
    with cpu_layers(layer):
        assert layer.forward is changed
    assert layer.forward is changed


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, initializer_range=0.2, **sizes))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_models_gradients_are_nearly_those_of_its_own_layers(checkpointed: bool) -> None:
    ids = torch.arange(40).reshape(2, 20)

    def trained(*, swapped: bool) -> LlamaForCausalLM:
        model = tiny_llama().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        with cpu_layers(*([model] if swapped else [])):
            model(input_ids=ids, labels=ids).loss.backward()
        return model

    first, again, usual = trained(swapped=True), trained(swapped=True), trained(swapped=False)
    for (name, parameter), same, other in zip(
        first.named_parameters(), again.parameters(), usual.parameters(), strict=True
    ):
        assert parameter.grad is not None
        assert same.grad is not None
        assert other.grad is not None
        assert torch.equal(parameter.grad, same.grad), name
        assert (parameter.grad - other.grad).norm() <= 1e-5 * other.grad.norm(), name
