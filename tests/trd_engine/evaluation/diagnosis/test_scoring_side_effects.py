"""Scoring for the diagnosis leaves everything as it was: mode, generators, gradients, weights."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.trd_engine.tiny_runs import MODELS
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.evaluation.diagnosis.scoring import ScoredCompletion, score_completions
from trd_engine.teachers.local import Teacher
from trd_engine.types import TrainingSequence

SEQUENCES = [TrainingSequence((3, 4, 5), (6, 7), tuple(range(8, 8 + n)), 10 * n) for n in (1, 4, 9)]


@pytest.fixture
def student() -> PeftModel:
    """Teaches itself, with dropout on an adapter that is not zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(MODELS / "tiny-student")
    model = get_peft_model(base, LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False, target_modules=["q_proj"]))
    assert isinstance(model, PeftModel)
    return model


def scores(student: PeftModel, max_tokens: int = 1000) -> dict[int, ScoredCompletion]:
    models = ModelPair(student, Teacher(student, shares_student=True), Divergence(), torch.float32, (5,))
    return score_completions(models, SEQUENCES, watched={40: 9}, max_tokens=max_tokens)


def generators() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


@pytest.mark.parametrize("is_training", [True, False])
def test_mode_and_generators_are_as_before(student: PeftModel, is_training: bool) -> None:
    student.train(is_training)
    before = generators()
    first, second = scores(student), scores(student)
    assert generators() == before
    assert student.training == is_training
    assert all(parameter.grad is None for parameter in student.parameters())
    for position in (10, 40, 90):
        assert np.array_equal(first[position].forward_kl_T, second[position].forward_kl_T), "dropout was on"
        assert first[position].forward_kl_T.max() > 0


def test_figures_belong_to_their_sequence_however_it_was_batched(student: PeftModel) -> None:
    together, alone = scores(student), scores(student, max_tokens=1)
    for sequence in SEQUENCES:
        ours, theirs = together[sequence.position], alone[sequence.position]
        assert ours.num_tokens == len(sequence.completion_ids)
        for name in ScoredCompletion.__dataclass_fields__:
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4, abs=1e-6)


def test_only_watched_sequences_have_a_watched_mass(student: PeftModel) -> None:
    found = scores(student)
    assert (found[40].watched_mass_T > 0).all()
    assert not found[10].watched_mass_T.any()
    assert not found[90].watched_mass_T.any()
    # Position 40 watches token 9, its second one: there the mass is the sampled token's own probability.
    assert found[40].watched_mass_T[1] == pytest.approx(np.exp(found[40].teacher_logprob_T[1]), rel=1e-4)
