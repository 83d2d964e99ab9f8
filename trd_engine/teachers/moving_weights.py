"""How the weights of a student that teaches itself follow the student.

Owns which teacher's parameter follows which of the student's, how, and what of it a checkpoint keeps. With
LoRA the teacher's are a second adapter on the same base, with full fine-tuning a second model. A frozen
teacher, or another model, has no `TeacherUpdate`.
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
    """Moves a teacher's weights after the student's steps."""

    def __init__(self, config: TeacherUpdateConfig, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """`pairs` by name: a teacher's parameter, and the student's that it follows."""
        self._config = config
        self._pairs = pairs

    @classmethod
    def of(cls, config: TeacherUpdateConfig, teacher: nn.Module, student: nn.Module) -> TeacherUpdate | None:
        """The update between two models, or between the adapters of one; None where the teacher is frozen."""
        if config.kind == "frozen":
            return None
        if isinstance(student, PeftModel):
            return cls(config, adapter_pairs(student))
        trained = dict(student.named_parameters())
        return cls(config, {name: (parameter, trained[name]) for name, parameter in teacher.named_parameters()})

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """Follow the student's step number `step` (from 1); true where the teacher's weights are other ones now."""
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
        """Take over what `write` wrote; raises `CheckpointCorruptError` where it is another model's."""
        stored = PartsReader(folder, TEACHER_WEIGHTS)
        if stored.names != self._pairs.keys():
            raise CheckpointCorruptError(f"{TEACHER_WEIGHTS} does not hold this teacher's weights")
        for name, (teacher, _) in self._pairs.items():
            stored.read_into(name, teacher)
