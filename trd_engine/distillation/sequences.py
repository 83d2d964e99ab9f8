"""The prompt of each model before the target y: what OPD, OPSD and TRD differ in.

| teacher's context | another model | the student's step-0 weights |
|---|---|---|
| vanilla | x | x, y* |
| refine | x, y_o | x, y*, y_o |

The student's context is always x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from trd_engine.distillation.batching import MicroBatch, PassTokens, share_of, split_into_micro_batches
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.errors import PassesTooLargeError, PassTooLargeError
from trd_engine.teachers.prompts import TeacherContext, TeacherPrompts
from trd_engine.types import TrainingSequence, Trajectory


@dataclass(frozen=True)
class Batcher:
    """Turns trajectories into the micro-batches of this process."""

    teacher_prompts: TeacherPrompts
    context: TeacherContext | None
    """What the teacher sees before y; None if it is a served one, whose scores come with the trajectories."""
    max_tokens: PassTokens
    device: torch.device
    world: World = ALONE

    def sequence(self, trajectory: Trajectory, position: int, *, weight: float = 1.0) -> TrainingSequence:
        """Put the target after the student's prompt and after the teacher's; `weight` is each token's.

        In the refine context y_r is scored after exactly the prompt tokens from which it was sampled.
        """
        prompt = trajectory.prompt_token_ids
        seen_by_teacher = prompt if self.context is None else self.teacher_prompts.scoring(trajectory, self.context)
        return TrainingSequence(
            student_prompt_ids=prompt,
            teacher_prompt_ids=seen_by_teacher,
            completion_ids=trajectory.target.token_ids,
            position=position,
            weight=weight,
            scores=trajectory.scores,
        )

    def micro_batches(
        self, numbered: Sequence[tuple[int, Trajectory]], weights: Sequence[float] | None = None
    ) -> tuple[list[MicroBatch], MicroBatch | None]:
        """Return this process's part of a batch, and the filler that it computes while others have more micro-batches.

        `weights` are indexed by the trajectories' numbers; None: all 1.
        """
        sequences = [self.sequence(t, i, weight=1.0 if weights is None else weights[i]) for i, t in numbered]
        if self.world.size == 1:
            return self._split(sequences), None
        return self._split(share_of(sequences, self.world)), self._split(sequences[:1])[0]

    def with_smaller_passes(
        self, micro_batches: Sequence[MicroBatch], error: PassTooLargeError, fitted: PassTokens
    ) -> Batcher:
        """Return a batcher for passes of half the size, which compute the same loss.

        `fitted` are the largest passes that this attempt has had room for. Raises `PassTooLargeError` with what to do
        if each pass has one sequence already, and `PassesTooLargeError` for several processes: the others wait for
        this one in the pass that failed.
        """
        packed = [batch for batch in micro_batches if len(batch.positions) > 1]
        if not packed:
            room = "one of fewer tokens may fit"
            if fitted.student > 0:
                room = (
                    f"sequences of up to {fitted.student} tokens for the student and {fitted.teacher} for the teacher, "
                    "prompts included, have fitted"
                )
            raise PassTooLargeError(
                f"{error}; passes have one sequence each, and {room}: lower refine.max_new_tokens and "
                "sampling.max_new_tokens, set optim.gradient_checkpointing, or use LoRA or more devices"
            ) from error
        student = max(batch.num_student_tokens for batch in packed) // 2
        teacher = max(batch.num_teacher_tokens for batch in packed) // 2
        if self.world.size > 1:
            raise PassesTooLargeError(
                f"{error}; max_pass_tokens = [{student}, {teacher}] halves the passes, with the same loss",
                (student, teacher),
            ) from error
        return replace(self, max_tokens=PassTokens(student, teacher))

    def _split(self, sequences: Sequence[TrainingSequence]) -> list[MicroBatch]:
        return split_into_micro_batches(sequences, max_tokens=self.max_tokens, device=self.device)
