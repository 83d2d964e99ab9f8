"""The draw of a token follows the distribution, cut as asked, and depends on the request's seed alone."""

from __future__ import annotations

import pytest
import torch

from trd_engine.generation.hf.token_sampling import draw_uniforms, keep_nucleus, sample_tokens
from trd_engine.types import GenerationRequest, SamplingSettings

NUM_DRAWS = 200_000


def settings(temperature: float = 1.0, top_p: float = 1.0, top_k: int = -1) -> SamplingSettings:
    return SamplingSettings(temperature, top_p, top_k, max_new_tokens=1, stop_token_ids=())


def reference_distribution(logits: list[float], temperature: float, top_p: float, top_k: int) -> list[float]:
    """Compute the distribution token by token, in float64: temperature, the k best, then the fewest of them that hold
    `top_p`."""
    scores = torch.tensor(logits, dtype=torch.float64) / temperature
    order = sorted(range(len(logits)), key=lambda i: -scores[i].item())
    kept = order[: top_k if top_k > 0 else len(order)]
    weights = {i: scores[i].exp().item() for i in kept}
    total, mass, nucleus = sum(weights.values()), 0.0, []
    for i in kept:
        if mass >= top_p:
            break
        nucleus.append(i)
        mass += weights[i] / total
    share = sum(weights[i] for i in nucleus)
    return [weights[i] / share if i in nucleus else 0.0 for i in range(len(logits))]


CUTS = [(1.0, 1.0, -1), (0.6, 1.0, -1), (1.0, 0.8, -1), (1.0, 1.0, 3), (1.0, 1.0, 0), (0.6, 0.95, 5), (1.3, 0.5, 4)]


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), CUTS)
def test_drawn_frequencies_are_the_distribution(temperature: float, top_p: float, top_k: int) -> None:
    logits = [0.3, -1.0, 2.0, 1.1, -3.0, 0.9, 1.7]
    expected = torch.tensor(reference_distribution(logits, temperature, top_p, top_k))
    # Evenly spaced uniforms: the frequency is then exact up to one draw a token, with no chance in the test.
    uniforms = (torch.arange(NUM_DRAWS, dtype=torch.float64) + 0.5) / NUM_DRAWS
    tokens = sample_tokens(torch.tensor([logits]).expand(NUM_DRAWS, -1), uniforms, settings(temperature, top_p, top_k))
    frequencies = tokens.bincount(minlength=len(logits)) / NUM_DRAWS
    assert torch.allclose(frequencies, expected.float(), atol=2e-5)


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), CUTS)
def test_nucleus_keeps_the_same_tokens(temperature: float, top_p: float, top_k: int) -> None:
    logits = [0.3, -1.0, 2.0, 1.1, -3.0, 0.9, 1.7]
    expected = torch.tensor(reference_distribution(logits, temperature, top_p, top_k))
    kept = keep_nucleus(torch.tensor([logits]) / temperature, top_k, top_p).softmax(dim=-1)[0]
    assert torch.allclose(kept, expected.float(), atol=1e-6)


@pytest.mark.parametrize("size", [7, 256, 700, 1024])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_a_draw_from_all_tokens_is_the_inverse_of_their_distribution(size: int, spread: float) -> None:
    """At a spread of 60 most tokens have no probability at all in fp32, and whole blocks of them."""
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(1, size, generator=generator) * spread
    uniforms = torch.rand(5_000, dtype=torch.float64, generator=generator)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    tokens = sample_tokens(logits.expand(len(uniforms), -1), uniforms, settings())
    probabilities = logits[0].softmax(dim=-1).double()
    ends = probabilities.cumsum(dim=-1)
    assert (probabilities[tokens] > 0).all()
    assert (uniforms <= ends[tokens] + 1e-6).all()
    assert (uniforms >= ends[tokens] - probabilities[tokens] - 1e-6).all()


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0], [9.0, 5.0, 1.0]])
    assert sample_tokens(logits, torch.tensor([0.99, 0.99]), settings(temperature=0.0)).tolist() == [1, 0]


def test_the_edges_of_the_unit_interval_stay_inside_the_nucleus() -> None:
    logits = torch.tensor([[3.0, 2.0, -50.0, -60.0]]).expand(2, -1)
    almost_one = 1 - 2**-53
    tokens = sample_tokens(logits, torch.tensor([0.0, almost_one], dtype=torch.float64), settings(top_p=0.99))
    assert tokens.tolist() == [0, 1]


def test_uniforms_hang_on_the_seed_and_on_nothing_else() -> None:
    state = torch.get_rng_state()
    first, second = GenerationRequest((1,), seed=7), GenerationRequest((2, 3), seed=8)
    together = draw_uniforms([first, second], 5)
    assert torch.equal(together[1], draw_uniforms([second], 9)[0, :5])
    assert not torch.equal(together[0], together[1])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_possible", [1, 255, 257, 600])
def test_a_uniform_next_to_one_draws_a_token_that_can_be(num_possible: int) -> None:
    logits_BV = torch.randn(200, 700, generator=torch.Generator().manual_seed(0))
    logits_BV[:, num_possible:] = -torch.inf
    largest_B = torch.ones(200, dtype=torch.float64).nextafter(torch.zeros(200, dtype=torch.float64))
    tokens_B = sample_tokens(logits_BV, largest_B, SamplingSettings(1.0, 1.0, -1, 1, ()))
    assert int(tokens_B.max()) < num_possible
