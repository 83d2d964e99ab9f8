"""What both models would rather have written at the tokens where they disagree most.

Bounded, because a record holds the words themselves: a few trajectories of a round, and a few tokens of each.

Shapes: P chosen tokens of a micro-batch, H the hidden size of a model, V its vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trd_engine.distillation.batching import MicroBatch, PassTokens, split_into_micro_batches
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.evaluation.diagnosis.scoring import Figures
from trd_engine.models.attention.packing import hidden_states
from trd_engine.models.head import OutputHead, head_of
from trd_engine.models.loading import evaluation_mode
from trd_engine.types import TrainingSequence

MAX_TRAJECTORIES = 16
"""Most trajectories of a round. The pass over their tokens is repeated, so that this bounds its cost too."""
MAX_PLACES = 48
"""Most tokens of one completion: those with the largest KL."""
NUM_ALTERNATIVES = 5

LikelyTokens = tuple[tuple[str, float], ...]
"""Texts of the likeliest tokens with their probabilities, at temperature 1."""


@dataclass(frozen=True)
class Alternatives:
    """The likeliest next tokens before one token of a completion."""

    token: int
    """Its number in the completion."""
    student: LikelyTokens
    teacher: LikelyTokens


def largest(forward_kl_T: Figures) -> list[int]:
    """Return the numbers of at most `MAX_PLACES` tokens with the largest KL, rising."""
    order = np.argsort(-np.nan_to_num(forward_kl_T, nan=np.inf), kind="stable")
    return sorted(int(place) for place in order[:MAX_PLACES])


def find_alternatives(
    models: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[TrainingSequence],
    places: Mapping[int, Sequence[int]],
    *,
    max_tokens: PassTokens | int,
) -> dict[int, tuple[Alternatives, ...]]:
    """Return the alternatives at `places` of each sequence, both by the trajectory's position.

    Runs both models again over the sequences, without gradient. Of several processes all call it together.
    """
    found: dict[int, tuple[Alternatives, ...]] = {}
    text_of = functools.cache(lambda token_id: str(tokenizer.decode([token_id])))
    with torch.no_grad(), evaluation_mode(models.student):
        for batch in split_into_micro_batches(sequences, max_tokens=max_tokens, device=models.device):
            tokens = [(position, place) for position in batch.positions for place in places[position]]
            student, teacher = _likely(models, batch, places)
            for (position, place), of_student, of_teacher in zip(tokens, student, teacher, strict=True):
                named = Alternatives(place, _named(text_of, of_student), _named(text_of, of_teacher))
                found[position] = (*found.get(position, ()), named)
    return found


Likely = list[list[tuple[int, float]]]
"""Token ids with their probabilities, at each of the P places."""


def _likely(models: ModelPair, batch: MicroBatch, places: Mapping[int, Sequence[int]]) -> tuple[Likely, Likely]:
    assert models.teacher is not None
    starts = [0, *np.cumsum(batch.tokens_by_sequence)]
    rows = [int(starts[n]) + place for n, position in enumerate(batch.positions) for place in places[position]]
    rows_P = torch.tensor(rows, dtype=torch.int64, device=models.device)
    with models.autocast():
        hidden_PG = models.teacher.hidden(batch.teacher)[rows_P]

        def of_both() -> tuple[Likely, Likely]:
            assert models.teacher is not None
            student = _top(hidden_states(models.student, batch.student)[rows_P], head_of(models.student))
            # Here, too: a teacher that shares the student's sharded weights has its head only here.
            return student, _top(hidden_PG, models.teacher.head())

        likely: tuple[Likely, Likely] = models.run_student_unsharded(of_both)
        return likely


def _top(hidden_PH: Tensor, head: OutputHead) -> Likely:
    probs_PV = head.logits(hidden_PH).softmax(-1)
    probs_PK, ids_PK = probs_PV.topk(min(NUM_ALTERNATIVES, probs_PV.shape[-1]))
    return [list(zip(ids, probs, strict=True)) for ids, probs in zip(ids_PK.tolist(), probs_PK.tolist(), strict=True)]


def _named(text_of: Callable[[int], str], likely: Sequence[tuple[int, float]]) -> LikelyTokens:
    return tuple((text_of(token_id), round(probability, 4)) for token_id, probability in likely)
