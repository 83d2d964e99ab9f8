"""Move the current weights of student and teacher into the engines that sample."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from trd_engine.generation.protocol import Generator
from trd_engine.models.fsdp import gather_full_model, save_adapter
from trd_engine.models.loading import TrainedModel
from trd_engine.models.lora import STUDENT_ADAPTER, TEACHER_ADAPTER
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.machine_files import share_folder


@dataclass
class _Role:
    """A model whose weights an engine may serve, and the version of these weights."""

    model: TrainedModel
    adapter: str
    folder: Path
    """The folder from which the engine loads them."""
    dtype: torch.dtype | None
    """Dtype of a full model's weights in the engine; None: as they are."""
    world: World = ALONE
    version: int = 0
    """0: the weights of step 0, which the engine has from the start."""
    written: int | None = None
    """The newest version in `folder`."""

    def write(self) -> Path:
        """Write the newest weights if needed, and return their folder. Collective."""
        if self.written != self.version:
            if self.world.is_main:
                shutil.rmtree(self.folder, ignore_errors=True)
            if isinstance(self.model, PeftModel):
                save_adapter(self.model, self.folder, self.adapter, self.world)
            elif (whole := gather_full_model(self.model, self.world, self.dtype)) is not None:
                whole.save_pretrained(str(self.folder))
            share_folder(self.folder, self.world)
            self.written = self.version
        # PEFT puts every adapter except the first into a subfolder.
        is_below = isinstance(self.model, PeftModel) and self.adapter != STUDENT_ADAPTER
        return self.folder / self.adapter if is_below else self.folder


class ServedWeights:
    """Serves an engine with separate weights: the student's and, if it is its own teacher, the teacher's too.

    The weights of a role are written and loaded before its next sample, not after every step.
    """

    def __init__(
        self,
        generator: Generator,
        model: TrainedModel,
        *,
        step0_folder: Path,
        sync_folder: Path,
        teacher: TrainedModel | None = None,
        dtype: torch.dtype | None = None,
        world: World = ALONE,
    ) -> None:
        """`model` is the student, `teacher` the module that teaches if it differs from the student. `dtype` is that of
        the generator's weights: more is not written.

        Each process has a separate generator, which loads from `sync_folder` on its machine's disk.
        """
        self._generator = generator
        self._step0_folder = step0_folder
        self._student = _Role(model, STUDENT_ADAPTER, sync_folder / "student", dtype, world)
        self._teacher = _Role(teacher or model, TEACHER_ADAPTER, sync_folder / "teacher", dtype, world)
        self._served: tuple[_Role | None, int] = (None, 0)

    def to_student(self) -> None:
        """Serve the newest student."""
        self._serve(self._student)

    def to_teacher(self) -> None:
        """Serve the newest teacher if the student is its own teacher; a frozen one has the step-0 weights."""
        self._serve(self._teacher)

    def student_changed(self) -> None:
        """Note an optimizer step: the weights served as the student are stale from now on."""
        self._student.version += 1

    def teacher_changed(self) -> None:
        """Note new teacher weights: those served as the teacher are stale from now on."""
        self._teacher.version += 1

    def _serve(self, role: _Role) -> None:
        wanted = (role, role.version) if role.version else (None, 0)
        if self._served[0] is wanted[0] and self._served[1] == wanted[1]:
            return
        folder = role.write() if role.version else None
        if isinstance(role.model, PeftModel):
            self._generator.use_adapter(folder)
        else:
            self._generator.load_weights(folder or self._step0_folder)
        self._served = wanted
