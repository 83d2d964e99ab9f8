"""Scores a few trajectories of a round as both models see them, a figure a token.

Owns what is scored in which context; what the figures say is `report`'s. Nothing here moves a random generator,
a weight or a model's mode, so that a run is the same with it and without.

Shapes: N tokens of a micro-batch, T tokens of one completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trd_engine.distillation.batching import MicroBatch, PassTokens, split_into_micro_batches
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.token_statistics import StatisticsRequest
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.distillation.scoring import score
from trd_engine.models.loading import evaluation_mode
from trd_engine.runtime.seeds import shuffled
from trd_engine.types import TrainingSequence

Figures = NDArray[np.float32]


@dataclass(frozen=True)
class ScoredCompletion:
    """One completion in one view. Masses are the teacher's probabilities, logarithms are natural."""

    forward_kl_T: Figures
    """Full vocabulary, temperature 1, no clip, whatever the run's loss."""
    epistemic_mass_T: Figures
    """Mass on all epistemic onsets together."""
    path_mass_T: Figures
    """Mass on the likeliest other token."""
    second_path_mass_T: Figures
    watched_mass_T: Figures
    """Mass on one token that the caller watches; 0 if it watches none."""
    student_logprob_T: Figures
    teacher_logprob_T: Figures
    student_entropy_T: Figures
    teacher_entropy_T: Figures
    top1_agreement_T: Figures

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.forward_kl_T)


def choose_sample(num_trajectories: int, max_sample: int, *, seed: int, round_index: int) -> list[int]:
    """Choose at most `max_sample` positions of a round, in rising order: the same ones for the same seed and round."""
    return sorted(shuffled(num_trajectories, seed, "diagnosis", round_index)[:max_sample])


def score_completions(
    models: ModelPair,
    sequences: Sequence[TrainingSequence],
    *,
    watched: Mapping[int, int] | None = None,
    max_tokens: PassTokens | int,
) -> dict[int, ScoredCompletion]:
    """Return each sequence's figures by its position. `watched` names a token id for some positions.

    Micro-batches as in training, without gradient, at most `max_tokens` each.
    """
    found: dict[int, ScoredCompletion] = {}
    with torch.no_grad(), evaluation_mode(models.student):
        for batch in split_into_micro_batches(sequences, max_tokens=max_tokens, device=models.device):
            found |= _score_batch(models, batch, watched or {})
    return found


def _score_batch(models: ModelPair, batch: MicroBatch, watched: Mapping[int, int]) -> dict[int, ScoredCompletion]:
    watched_N = torch.tensor([watched.get(position, -1) for position in batch.positions]).to(batch.sequence_N.device)
    watched_N = watched_N[batch.sequence_N]
    request = StatisticsRequest(models.epistemic_token_ids, modes=True, watched_ids_N=watched_N.clamp(min=0))
    scored = score(models, batch, Divergence(), 0.0, statistics=request)
    statistics = scored.statistics
    assert statistics.teacher_watched_mass_N is not None
    columns = {
        "forward_kl_T": scored.divergence_N,
        "epistemic_mass_T": statistics.teacher_epistemic_mass_N,
        "path_mass_T": statistics.teacher_path_mass_N,
        "second_path_mass_T": statistics.teacher_second_path_mass_N,
        "watched_mass_T": statistics.teacher_watched_mass_N.masked_fill(watched_N < 0, 0.0),
        "student_logprob_T": statistics.student_logprob_N,
        "teacher_logprob_T": statistics.teacher_logprob_N,
        "student_entropy_T": statistics.student_entropy_N,
        "teacher_entropy_T": statistics.teacher_entropy_N,
        "top1_agreement_T": statistics.top1_agreement_N,
    }
    arrays = {name: _array(values_N) for name, values_N in columns.items()}
    owners = batch.sequence_N.cpu().numpy()
    return {
        position: ScoredCompletion(**{name: values_N[owners == number] for name, values_N in arrays.items()})
        for number, position in enumerate(batch.positions)
    }


def _array(values_N: Tensor | None) -> Figures:
    assert values_N is not None
    array: Figures = values_N.float().cpu().numpy()
    return array
