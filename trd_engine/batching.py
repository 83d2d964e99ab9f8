"""From trajectories to micro-batches: what is scored with what, in which forward pass.

Shapes: B sequences, T positions (padded), N trained tokens of the micro-batch in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trd_engine.types import TrainingSequence

DEFAULT_MICRO_BATCH_TOKENS = 16_384
"""Padded tokens of one forward pass where the spec does not say."""


@dataclass(frozen=True)
class ScoredTokens:
    """One model's view of a micro-batch: its own prompts before the same completions."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    predicts_N: Tensor
    """Index into the flattened B·T positions whose hidden state predicts each trained token."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of both models over the same completions."""

    student: ScoredTokens
    teacher: ScoredTokens
    token_ids_N: Tensor
    """The trained tokens: the sampled completion ids, sequence after sequence."""
    sequence_N: Tensor
    """Which sequence (0 … B−1) each trained token belongs to."""
    positions: tuple[int, ...]
    """Of the trajectories in their round, to name a bad batch by."""

    @property
    def num_trained_tokens(self) -> int:
        """N."""
        return int(self.token_ids_N.numel())

    @property
    def num_input_tokens(self) -> int:
        """Tokens that both models read, padding included."""
        return self.student.input_ids_BT.numel() + self.teacher.input_ids_BT.numel()


def split_into_micro_batches(
    sequences: Sequence[TrainingSequence], *, max_tokens: int, device: torch.device
) -> list[MicroBatch]:
    """All of `sequences`, alike lengths together so that little is padded, at most `max_tokens` padded
    tokens each (one longer sequence goes alone). Deterministic. Which sequences share a micro-batch
    does not change the step: losses are weighted by the tokens of the whole step."""
    ordered = sorted(sequences, key=lambda s: (_longest(s), s.position))
    groups: list[list[TrainingSequence]] = []
    for sequence in ordered:
        if groups and _longest(sequence) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return [_collate(group, device) for group in groups]


def _longest(sequence: TrainingSequence) -> int:
    prompt = max(len(sequence.student_prompt_ids), len(sequence.teacher_prompt_ids))
    return prompt + len(sequence.completion_ids)


def _collate(group: Sequence[TrainingSequence], device: torch.device) -> MicroBatch:
    token_ids = [token for s in group for token in s.completion_ids]
    owners = [number for number, s in enumerate(group) for _ in s.completion_ids]
    return MicroBatch(
        student=_score_after([s.student_prompt_ids for s in group], group, device),
        teacher=_score_after([s.teacher_prompt_ids for s in group], group, device),
        token_ids_N=torch.tensor(token_ids, device=device),
        sequence_N=torch.tensor(owners, device=device),
        positions=tuple(s.position for s in group),
    )


def _score_after(
    prompts: Sequence[tuple[int, ...]], group: Sequence[TrainingSequence], device: torch.device
) -> ScoredTokens:
    rows = [[*prompt, *s.completion_ids] for prompt, s in zip(prompts, group, strict=True)]
    width = max(map(len, rows))
    # Right padding, with any valid id: nothing attends to it and no loss is taken there.
    input_ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    attention_mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    predicts = [
        number * width + len(prompt) - 1 + offset
        for number, (prompt, s) in enumerate(zip(prompts, group, strict=True))
        for offset in range(len(s.completion_ids))
    ]
    return ScoredTokens(input_ids_BT, attention_mask_BT, torch.tensor(predicts, device=device))
