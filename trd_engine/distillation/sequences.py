"""Which tokens each model sees before the target y: the heart of OPD, OPSD and TRD.

| teacher's context | another model | the student's step-0 weights |
|---|---|---|
| vanilla | x | x, y* |
| refine | x, y_o | x, y*, y_o |

The student's context is always x.
"""

from __future__ import annotations

from typing import Literal

from trd_engine.config import RunConfig
from trd_engine.tasks.prompt_builder import PromptBuilder
from trd_engine.types import TrainingSequence, Trajectory


def training_sequence(
    trajectory: Trajectory, position: int, config: RunConfig, teacher_prompts: PromptBuilder, *, weight: float = 1.0
) -> TrainingSequence:
    """The target trajectory after the student's prompt and after the teacher's; `weight` is each token's.

    In the refine context y_r is scored after the very prompt tokens it was sampled from. A served teacher reads
    nothing here: what it says comes along.
    """
    if config.served_teacher is not None:
        seen_by_teacher = trajectory.prompt_token_ids
    else:
        seen_by_teacher = teacher_prompt(trajectory, config.loss.teacher_context, config, teacher_prompts)
    return TrainingSequence(
        student_prompt_ids=trajectory.prompt_token_ids,
        teacher_prompt_ids=seen_by_teacher,
        completion_ids=trajectory.target.token_ids,
        position=position,
        weight=weight,
        scores=trajectory.scores,
    )


def teacher_prompt(
    trajectory: Trajectory, context: Literal["vanilla", "refine"], config: RunConfig, prompts: PromptBuilder
) -> tuple[int, ...]:
    """What the teacher sees before the text that it scores; the refine context is of trajectories that were refined."""
    if context == "refine":
        assert trajectory.refine_prompt_token_ids is not None, "the config allows the refine context in mode trd only"
        return trajectory.refine_prompt_token_ids
    if config.is_privileged:
        return prompts.privileged(trajectory.problem, max_tokens=config.refine.max_prompt_tokens).token_ids
    return prompts.solve(trajectory.problem)
