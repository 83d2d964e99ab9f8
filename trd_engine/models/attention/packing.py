"""Find out by trial how a model reads a packed row, and read it so.

There are three ways; the first that gives the same results as the model's own code is used:

- `attention`: our packed attention, whose cost is the sum of the lengths' squares;
- `mask`: the model's own attention under the block-diagonal mask that transformers makes of restarting
  position ids; every token is compared with every other of the row;
- `single`: a forward pass a sequence, for models that carry a state along the row or know no position ids.

Names of architectures appear nowhere. Shapes: T tokens of a row, H hidden size.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trd_engine.models.attention.packed import NAME, Segments, packed_row, working_dtype
from trd_engine.models.loading import backbone_of, causal_lm_of, evaluation_mode
from trd_engine.runtime.hardware import is_out_of_memory

PackingKind = Literal["attention", "mask", "single"]

_PROBE_LENGTHS = (9, 6)
_MIN_TOLERANCE = 1e-4
_MIN_TOLERANCE_HALF = 0.02
_NOISE_FACTOR = 3.0
"""A packed row may differ from its sequences by this multiple of what the model's own two ways of reading one sequence
differ by, relative, per token. A token that attends to another sequence differs by far more."""


@dataclass(frozen=True)
class Packing:
    """How a model reads packed rows, and the attention implementation for it."""

    kind: PackingKind
    implementation: str


_chosen: WeakKeyDictionary[PreTrainedModel, Packing] = WeakKeyDictionary()


def packing_of(model: nn.Module) -> Packing:
    """Return how this model reads packed rows; the first call tries it with a few tokens and sets its attention.

    The trial runs in the caller's autocast: a kernel may take one dtype and refuse another. It consumes no randomness
    and leaves every module in its mode.
    """
    causal_lm = causal_lm_of(model)
    if causal_lm not in _chosen:
        _chosen[causal_lm] = _choose(causal_lm)
    return _chosen[causal_lm]


def packing_notice(role: str, model: nn.Module) -> str | None:
    """Return a notice for the user if this model reads packed rows at reduced speed; else None."""
    packing = packing_of(model)
    if packing.kind == "attention":
        return None
    name = type(causal_lm_of(model)).__name__
    cost = {
        "mask": f"{packing.implementation} attention under a block-diagonal mask: slower and larger on long rows",
        "single": "one sequence a forward pass: slower on short sequences",
    }[packing.kind]
    return f"the {role}'s architecture {name} does not support packed attention; rows are read with {cost}"


def read_row(model: nn.Module, input_ids_1T: Tensor, position_ids_1T: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return final hidden states [T, H] of the sequences that lie end to end in the row, each read by itself."""
    hidden_TH: Tensor = _read(model, packing_of(model).kind, input_ids_1T, position_ids_1T, lengths)
    return hidden_TH


def _read(
    model: nn.Module, kind: PackingKind, input_ids_1T: Tensor, position_ids_1T: Tensor, lengths: tuple[int, ...]
) -> Tensor:
    backbone = backbone_of(model)
    if kind == "single":
        rows = [backbone(input_ids=ids, use_cache=False) for ids in input_ids_1T.split(list(lengths), dim=1)]
        return torch.cat([row.last_hidden_state for row in rows], dim=1).squeeze(0)
    is_ours = kind == "attention"
    with packed_row(Segments(lengths, input_ids_1T.device)) if is_ours else nullcontext():
        output = backbone(
            input_ids=input_ids_1T,
            position_ids=position_ids_1T,
            # All ones keeps transformers from making its own mask of the position ids, which None asks for.
            attention_mask=torch.ones_like(input_ids_1T) if is_ours else None,
            use_cache=False,
        )
    hidden_TH: Tensor = output.last_hidden_state.squeeze(0)
    return hidden_TH


@torch.no_grad()
def _choose(model: PreTrainedModel) -> Packing:
    own = model.config._attn_implementation
    own = "sdpa" if own == NAME else own  # a copy of a model that was asked before
    vocabulary = model.config.get_text_config().vocab_size
    ids_1T = (torch.arange(sum(_PROBE_LENGTHS), device=model.device) * 7 % vocabulary).unsqueeze(0)
    positions_1T = torch.cat([torch.arange(n, device=model.device) for n in _PROBE_LENGTHS]).unsqueeze(0)
    # The same first sequence before another neighbour.
    other_1T = torch.cat([ids_1T[:, : _PROBE_LENGTHS[0]], (ids_1T[:, _PROBE_LENGTHS[0] :] + 1) % vocabulary], dim=1)
    with evaluation_mode(model):
        model.set_attn_implementation("eager")  # the reference: the architecture's own code
        expected_TH = _read(model, "single", ids_1T, positions_1T, _PROBE_LENGTHS)
        model.set_attn_implementation(own)
        tolerance = _tolerance(_read(model, "single", ids_1T, positions_1T, _PROBE_LENGTHS), expected_TH)
        for packing in _candidates(model, own):
            model.set_attn_implementation(packing.implementation)
            if model.config._attn_implementation != packing.implementation:
                continue
            try:
                found_TH = _read(model, packing.kind, ids_1T, positions_1T, _PROBE_LENGTHS)
                beside_TH = _read(model, packing.kind, other_1T, positions_1T, _PROBE_LENGTHS)[: _PROBE_LENGTHS[0]]
            except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise  # says nothing of the architecture: a slower way would be chosen for no reason
                continue  # the architecture has no room for this way
            leaks = not _agree(beside_TH, found_TH[: _PROBE_LENGTHS[0]], tolerance / _NOISE_FACTOR)
            if not leaks and _agree(found_TH, expected_TH, tolerance):
                return packing
    raise AssertionError("a model agrees with itself")


def _candidates(model: PreTrainedModel, own: str) -> list[Packing]:
    single = [Packing("single", own), Packing("single", "eager")]
    if model._is_stateful:  # a decaying state leaks too little for a short trial to show
        return single
    if _rope_depends_on_the_row(model):  # no trial of a few tokens reaches the length from which it differs
        return single
    # Where a class refuses sdpa, its scores have terms that we have not either.
    ours = [Packing("attention", NAME)] if own == "sdpa" else []
    return [*ours, Packing("mask", own), Packing("mask", "eager"), *single]


def _rope_depends_on_the_row(model: PreTrainedModel) -> bool:
    """Return whether the row's largest position decides the rotary frequencies, so that neighbours change them."""
    config = model.config.get_text_config()
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [part for part in found.values() if isinstance(part, dict)]  # by layer type
    kinds = {part.get("rope_type", part.get("type")) for part in [found, *nested]}
    return bool(kinds & {"longrope", "dynamic"})


def _tolerance(found_TH: Tensor, expected_TH: Tensor) -> float:
    """Return by how much two ways of reading the same tokens may differ in this dtype."""
    least = _MIN_TOLERANCE if working_dtype(expected_TH).itemsize >= 4 else _MIN_TOLERANCE_HALF
    noise = float(_differences(found_TH, expected_TH).max())
    return max(least, _NOISE_FACTOR * noise) if math.isfinite(noise) else least


def _differences(found_TH: Tensor, expected_TH: Tensor) -> Tensor:
    difference_T: Tensor = (found_TH.float() - expected_TH.float()).norm(dim=-1) / expected_TH.float().norm(dim=-1)
    return difference_T


def _agree(found_TH: Tensor, expected_TH: Tensor, tolerance: float) -> bool:
    if not expected_TH.isfinite().all():
        return True  # nothing can be compared; the step that trains on it will stop the run
    is_exact = working_dtype(found_TH).itemsize >= 4
    num_off = int((_differences(found_TH, expected_TH) > tolerance).sum())
    # In half precision a mixture of experts may send a token elsewhere by rounding alone.
    return bool(found_TH.isfinite().all()) and num_off <= (0 if is_exact else 1)


def hidden_states(model: torch.nn.Module, tokens: ScoredTokens) -> Tensor:
    """Return the hidden states [N, H] that predict the trained tokens, in their order."""
    hidden_TH = read_row(model, tokens.input_ids_1T, tokens.position_ids_1T, tokens.lengths)
    return hidden_TH.index_select(0, tokens.predicts_N)


@dataclass(frozen=True)
class ScoredTokens:
    """One model's view of a micro-batch: its own prompts before the same completions, in one row."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    """Positions, from 0 in each sequence."""
    lengths: tuple[int, ...]
    """Lengths of the sequences in the row, prompt and completion; they sum to T."""
    predicts_N: Tensor
    """The position in the row whose hidden state predicts each trained token."""
