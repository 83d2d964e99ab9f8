"""Updates of the teacher's weights if the student teaches itself.

Owns which teacher's parameter follows which of the student's, the update rule, and their part of a checkpoint. With
LoRA the teacher is a second adapter on the same base model, with full fine-tuning a second model. A frozen teacher, or
another model, has no `TeacherUpdate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from trd_engine.config import TeacherUpdateConfig
from trd_engine.models.lora import adapter_pairs
from trd_engine.models.sharded_file import PartsReader, write_parts
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.errors import CheckpointCorruptError

TEACHER_WEIGHTS = "teacher"


class TeacherUpdate:
    """Updates a teacher's weights after the student's steps."""

    def __init__(self, config: TeacherUpdateConfig, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take `pairs` by name: a teacher's parameter, and the student's parameter that it follows."""
        self._config = config
        self._pairs = pairs

    @classmethod
    def of(cls, config: TeacherUpdateConfig, teacher: nn.Module, student: nn.Module) -> TeacherUpdate | None:
        """Make the update between two models or between two adapters of one; None if the teacher is frozen."""
        if config.kind == "frozen":
            return None
        if isinstance(student, PeftModel):
            return cls(config, adapter_pairs(student))
        trained = dict(student.named_parameters())
        return cls(config, {name: (parameter, trained[name]) for name, parameter in teacher.named_parameters()})

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """Update after the student's step `step` (from 1); return whether the teacher's weights changed."""
        if self._config.kind == "periodic" and step % self._config.every_steps:
            return False
        for teacher, student in self._pairs.values():
            if self._config.kind == "ema":
                teacher.lerp_(student.to(teacher.dtype), 1.0 - self._config.decay)
            else:
                teacher.copy_(student)
        return True

    def write(self, folder: Path, world: World = ALONE) -> None:
        """Write the teacher's weights to `folder`, which all processes see."""
        write_parts(folder, TEACHER_WEIGHTS, {name: teacher for name, (teacher, _) in self._pairs.items()}, world)

    def restore(self, folder: Path) -> None:
        """Read the weights of `write`. Raises `CheckpointCorruptError` if they are another model's."""
        stored = PartsReader(folder, TEACHER_WEIGHTS)
        if stored.names != self._pairs.keys():
            raise CheckpointCorruptError(
                f"{TEACHER_WEIGHTS} in {folder} does not have this teacher's weights; resume from another checkpoint"
            )
        for name, (teacher, _) in self._pairs.items():
            stored.read_into(name, teacher)
