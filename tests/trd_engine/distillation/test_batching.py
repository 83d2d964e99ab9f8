"""Packing: the budget in either view, few rows, the same rows whatever the order."""

from __future__ import annotations

import random

import pytest
import torch

from trd_engine.distillation.batching import MicroBatch, PassTokens, split_into_micro_batches
from trd_engine.models.attention.packing import ScoredTokens
from trd_engine.types import TrainingSequence

CPU = torch.device("cpu")


def make_sequences(count: int, seed: int = 0) -> list[TrainingSequence]:
    """Make sequences, some with the longer prompt at the student's side, some at the teacher's."""
    source = random.Random(seed)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(source.randrange(3, 50) for _ in range(source.randint(1, most)))

    return [TrainingSequence(ids(30), ids(60 if i % 3 else 5), ids(80), i) for i in range(count)]


def split(sequences: list[TrainingSequence], max_tokens: PassTokens | int) -> list[MicroBatch]:
    return split_into_micro_batches(sequences, max_tokens=max_tokens, device=CPU)


def predicted(view: ScoredTokens) -> list[int]:
    """Return the token after each predicting position."""
    ids = view.input_ids_1T[0].tolist()
    return [ids[position + 1] for position in view.predicts_N.tolist()]


@pytest.mark.parametrize("max_tokens", [1, 170, 300, 1000, 10**6])
def test_every_token_is_trained_once_and_the_budget_holds(max_tokens: int) -> None:
    sequences = make_sequences(40)
    batches = split(sequences, max_tokens)
    assert sorted(p for b in batches for p in b.positions) == list(range(40))
    for batch in batches:
        expected = [token for p in batch.positions for token in sequences[p].completion_ids]
        assert batch.token_ids_N.tolist() == expected
        for view in (batch.student, batch.teacher):
            assert predicted(view) == expected
            assert view.input_ids_1T.shape == view.position_ids_1T.shape == (1, sum(view.lengths))
            assert view.position_ids_1T[0].tolist() == [i for length in view.lengths for i in range(length)]
            assert sum(view.lengths) <= max_tokens or len(view.lengths) == 1


def test_a_prediction_comes_from_its_own_sequence() -> None:
    sequences = make_sequences(12)
    (batch,) = split(sequences, 10**6)
    for name in ("student", "teacher"):
        view: ScoredTokens = getattr(batch, name)
        starts = [i for i, place in enumerate(view.position_ids_1T[0].tolist()) if place == 0]
        for number, position in enumerate(batch.positions):
            places = view.predicts_N[batch.sequence_N == number].tolist()
            prompt = getattr(sequences[position], f"{name}_prompt_ids")
            start = places[0] - len(prompt) + 1
            assert start in starts
            assert tuple(view.input_ids_1T[0, start : start + len(prompt)].tolist()) == prompt
            assert places == list(range(places[0], places[0] + len(places)))


def test_the_order_of_the_sequences_changes_nothing() -> None:
    sequences = make_sequences(30)
    shuffled = random.Random(1).sample(sequences, len(sequences))
    for one, other in zip(split(sequences, 300), split(shuffled, 300), strict=True):
        assert one.positions == other.positions
        assert torch.equal(one.student.input_ids_1T, other.student.input_ids_1T)
        assert torch.equal(one.teacher.predicts_N, other.teacher.predicts_N)


def test_rows_are_nearly_full() -> None:
    """Nothing is padded, and few rows are needed: at least nine tenths of what the fuller view could hold."""
    batches = split(make_sequences(200), 1000)
    fuller = max(
        sum(b.student.input_ids_1T.numel() for b in batches), sum(b.teacher.input_ids_1T.numel() for b in batches)
    )
    assert fuller / (1000 * len(batches)) > 0.9


def test_equal_lengths_lie_side_by_side() -> None:
    (batch,) = split(make_sequences(40), 10**6)
    assert list(batch.student.lengths) == sorted(batch.student.lengths)
    assert list(batch.teacher.lengths) == sorted(batch.teacher.lengths)


def test_a_long_row_of_the_teacher_does_not_keep_the_students_pass_short() -> None:
    """As in TRD: a short answer after a prompt that holds a whole attempt."""
    sequences = [TrainingSequence((3,) * 10, (4,) * 500, (5,) * 40, number) for number in range(24)]
    one_bound, own_bounds = split(sequences, 600), split(sequences, PassTokens(600, 6_000))
    assert [batch.num_student_tokens for batch in one_bound] == [50] * 24
    assert [batch.num_student_tokens for batch in own_bounds] == [550, 550, 100]
    assert max(batch.num_teacher_tokens for batch in own_bounds) <= 6_000
    assert sorted(p for batch in own_bounds for p in batch.positions) == list(range(24))
