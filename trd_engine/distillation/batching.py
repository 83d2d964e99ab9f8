"""From trajectories to micro-batches: which sequences share a forward pass.

Sequences are packed end to end, without padding. Shapes: T positions of a row, N trained tokens of the
micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trd_engine.models.attention.packing import ScoredTokens
from trd_engine.models.loading import TrainedModel, backbone_of, causal_lm_of
from trd_engine.runtime.distributed import World
from trd_engine.types import TokenScores, TrainingSequence
from trd_estimate.memory import DEFAULT_PASS_TOKENS, default_pass_tokens, student_token_bytes, teacher_token_bytes
from trd_estimate.shape import shape_of


@dataclass(frozen=True)
class PassTokens:
    """Upper bounds on the tokens of one pass of each model; a longer sequence is passed alone.

    The teacher's prompt may hold a whole attempt, so that its rows are several times as long, and its pass keeps
    nothing for a backward pass. With one bound for both, the student's passes would be short.
    """

    student: int
    teacher: int

    @classmethod
    def of_both(cls, num_tokens: int) -> PassTokens:
        """Return the same bound for either model."""
        return cls(num_tokens, num_tokens)

    def at_most(self, others: tuple[int, int] | None) -> PassTokens:
        """Return the smaller bound of each model."""
        return self if others is None else PassTokens(min(self.student, others[0]), min(self.teacher, others[1]))

    def grown_to(self, batches: Iterable[MicroBatch]) -> PassTokens:
        """Return bounds that the given passes keep too."""
        read = [(self.student, self.teacher), *((b.num_student_tokens, b.num_teacher_tokens) for b in batches)]
        return PassTokens(*map(max, zip(*read, strict=True)))


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of both models over the same completions."""

    student: ScoredTokens
    teacher: ScoredTokens
    token_ids_N: Tensor
    """The trained tokens: the sampled completion ids, sequence after sequence."""
    sequence_N: Tensor
    """Which sequence (0, 1, …) each trained token belongs to."""
    weight_N: Tensor
    """Each trained token's weight from its trajectory, fp32."""
    tokens_by_sequence: tuple[int, ...]
    """Trained tokens of each sequence; they sum to N."""
    positions: tuple[int, ...]
    """Positions of the trajectories in their round, to identify a batch with non-finite values."""
    scores: TokenScores | None = None
    """A served teacher's scores of the N trained tokens."""

    @property
    def num_trained_tokens(self) -> int:
        """N."""
        return int(self.token_ids_N.numel())

    @property
    def is_scored(self) -> Tensor:
        """Whether the teacher's distribution is known at each token, [N]; a local teacher's always is."""
        if self.scores is not None:
            return self.scores.is_scored
        return torch.ones_like(self.token_ids_N, dtype=torch.bool)

    @property
    def num_student_tokens(self) -> int:
        """Number of tokens that the student reads."""
        return self.student.input_ids_1T.numel()

    @property
    def num_teacher_tokens(self) -> int:
        """Number of tokens that the teacher reads."""
        return self.teacher.input_ids_1T.numel()

    @property
    def num_input_tokens(self) -> int:
        """Number of tokens that both models read."""
        return self.num_student_tokens + self.num_teacher_tokens


@dataclass
class _Row:
    """Sequences that share a micro-batch, and their tokens for each model."""

    sequences: list[TrainingSequence] = field(default_factory=list)
    num_student_tokens: int = 0
    num_teacher_tokens: int = 0

    def has_room(self, sequence: TrainingSequence, most: PassTokens) -> bool:
        return (
            self.num_student_tokens + _student_tokens(sequence) <= most.student
            and self.num_teacher_tokens + _teacher_tokens(sequence) <= most.teacher
        )

    def add(self, sequence: TrainingSequence) -> None:
        self.sequences.append(sequence)
        self.num_student_tokens += _student_tokens(sequence)
        self.num_teacher_tokens += _teacher_tokens(sequence)


def split_into_micro_batches(
    sequences: Sequence[TrainingSequence], *, max_tokens: PassTokens | int, device: torch.device
) -> list[MicroBatch]:
    """Pack all sequences into rows of at most `max_tokens` tokens, one number being the bound of either model.

    First-fit decreasing, so that few rows are needed; the same sequences in another order give the same rows. Which
    sequences share a row does not change the step: losses are weighted by the tokens of the whole step.
    """
    most = PassTokens.of_both(max_tokens) if isinstance(max_tokens, int) else max_tokens
    rows: list[_Row] = []
    for sequence in sorted(sequences, key=lambda s: (-_longest(s, most), s.position)):
        row = next((row for row in rows if row.has_room(sequence, most)), None)
        if row is None:
            row = _Row()
            rows.append(row)
        row.add(sequence)
    return [_collate(row.sequences, device) for row in rows]


def share_of(sequences: Sequence[TrainingSequence], world: World) -> list[TrainingSequence]:
    """Return this process's part of a batch: the longest sequence first to the process with the fewest tokens so far.

    Deterministic and the same in all processes; each sequence is in exactly one part.
    """
    parts: list[list[TrainingSequence]] = [[] for _ in range(world.size)]
    num_tokens = [0] * world.size
    for sequence in sorted(sequences, key=lambda s: (-_student_tokens(s) - _teacher_tokens(s), s.position)):
        rank = min(range(world.size), key=num_tokens.__getitem__)
        parts[rank].append(sequence)
        num_tokens[rank] += _student_tokens(sequence) + _teacher_tokens(sequence)
    return parts[world.rank]


def _student_tokens(sequence: TrainingSequence) -> int:
    return len(sequence.student_prompt_ids) + len(sequence.completion_ids)


def _teacher_tokens(sequence: TrainingSequence) -> int:
    return len(sequence.teacher_prompt_ids) + len(sequence.completion_ids)


def _longest(sequence: TrainingSequence, most: PassTokens) -> float:
    """Return the larger share of a pass, times the student's bound: whole tokens if both bounds are equal."""
    return max(_student_tokens(sequence), _teacher_tokens(sequence) * most.student / most.teacher)


def _collate(group: Sequence[TrainingSequence], device: torch.device) -> MicroBatch:
    token_ids = [token for s in group for token in s.completion_ids]
    owners = [number for number, s in enumerate(group) for _ in s.completion_ids]
    scores = [s.scores for s in group if s.scores is not None]
    return MicroBatch(
        student=_score_after([s.student_prompt_ids for s in group], group, device),
        teacher=_score_after([s.teacher_prompt_ids for s in group], group, device),
        token_ids_N=torch.tensor(token_ids, device=device),
        sequence_N=torch.tensor(owners, device=device),
        weight_N=torch.tensor([s.weight for s in group for _ in s.completion_ids], device=device),
        tokens_by_sequence=tuple(len(s.completion_ids) for s in group),
        positions=tuple(s.position for s in group),
        scores=TokenScores.concatenated(scores, device) if scores else None,
    )


def _score_after(
    prompts: Sequence[Sequence[int]], group: Sequence[TrainingSequence], device: torch.device
) -> ScoredTokens:
    texts = [(*prompt, *s.completion_ids) for prompt, s in zip(prompts, group, strict=True)]
    # Equal lengths next to each other: attention computes them as one batch.
    layout = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    starts, num_tokens = [0] * len(texts), 0
    for number in layout:
        starts[number] = num_tokens
        num_tokens += len(texts[number])
    predicts = [
        start + len(prompt) - 1 + offset
        for start, prompt, s in zip(starts, prompts, group, strict=True)
        for offset in range(len(s.completion_ids))
    ]
    lengths = tuple(len(texts[number]) for number in layout)
    return ScoredTokens(
        input_ids_1T=torch.tensor([[token for number in layout for token in texts[number]]], device=device),
        position_ids_1T=torch.tensor([[place for length in lengths for place in range(length)]], device=device),
        lengths=lengths,
        predicts_N=torch.tensor(predicts, device=device),
    )


KEPT_BYTES_CPU = 2**30
"""Upper bound on the inputs and outputs of all linear layers in one pass, about three quarters of the memory for
activations."""
MIN_TOKENS_CPU = 256
"""With fewer tokens, reading the weights and adding their gradients would take a tenth of the time or more."""


def pass_tokens(
    wanted: int | None, student: TrainedModel, teacher: TrainedModel | None, dtype: torch.dtype, free_bytes: int | None
) -> PassTokens:
    """Return the bounds of a run's passes. The same models and device give the same ones, so that a resumed run splits
    its batches equally.

    Args:
        wanted: The spec's bound of either model, if it sets one.
        student: The trained model.
        teacher: None if it is served.
        dtype: Of the passes.
        free_bytes: Of a GPU, for the activations of one pass; None on a CPU.
    """
    if wanted is not None:
        return PassTokens.of_both(wanted)
    is_checkpointed = causal_lm_of(student).is_gradient_checkpointing
    if free_bytes is None:
        return PassTokens.of_both(DEFAULT_PASS_TOKENS if is_checkpointed else _cpu_pass_tokens(student))
    shape, teachers = (
        shape_of(causal_lm_of(model).config.get_text_config().to_dict()) for model in (student, teacher or student)
    )
    if shape is None or teachers is None:  # a mixture of experts, say: its activations are unknown
        return PassTokens.of_both(DEFAULT_PASS_TOKENS)
    embedding = causal_lm_of(student).get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    stream_width = dtype.itemsize if isinstance(embedding, DTensor) else embedding.element_size()  # FSDP casts it
    of_student = student_token_bytes(shape, dtype.itemsize, is_checkpointed=is_checkpointed, stream_width=stream_width)
    return PassTokens(*default_pass_tokens(free_bytes, of_student, teacher_token_bytes(teachers, dtype.itemsize)))


def _cpu_pass_tokens(student: TrainedModel) -> int:
    linear = [layer for layer in backbone_of(student).modules() if isinstance(layer, nn.Linear)]
    bytes_a_token = sum(4 * (layer.in_features + layer.out_features) for layer in linear)
    return min(DEFAULT_PASS_TOKENS, max(MIN_TOKENS_CPU, KEPT_BYTES_CPU // max(1, bytes_a_token)))
