"""Who samples what: the student's rollouts, the teacher's refinements, and how new weights reach a sampler.

Three arrangements, chosen by the spec and hidden behind `Samplers`:

- transformers: each role borrows the module that trains or scores. Nothing is copied, nothing is synced.
- vLLM, with another model as the teacher: an engine for each.
- vLLM, teaching itself: one engine for both roles. Its weights are switched between the step-0 weights and
  the current ones, by the adapter with LoRA and by loading with full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from peft import PeftModel

from trd_engine.checkpoint import write_sampler_weights
from trd_engine.generation.protocol import Generator, ProgressCallback
from trd_engine.models import TrainedModel
from trd_engine.types import Completion, GenerationRequest, SamplingSettings


class WeightSwitch(Protocol):
    """Makes one role's weights the ones that its generator answers with."""

    def to_student(self) -> None:
        """The newest student."""
        ...

    def to_teacher(self) -> None:
        """The frozen step-0 weights."""
        ...

    def student_changed(self) -> None:
        """An optimizer step was taken: what is served as the student is stale from now on."""
        ...


class BorrowedWeights:
    """Generators that sample from the live modules: always the newest weights."""

    def to_student(self) -> None:
        """Nothing to do."""

    def to_teacher(self) -> None:
        """Nothing to do."""

    def student_changed(self) -> None:
        """Nothing to do."""


class ServedWeights:
    """An engine with weights of its own, that serves the student and, where it teaches itself, the teacher too.

    The student's weights are written and loaded when the next sample is asked for, not after every step.
    """

    def __init__(self, generator: Generator, model: TrainedModel, *, step0_folder: Path, sync_folder: Path) -> None:
        self._generator = generator
        self._model = model
        self._step0_folder = step0_folder
        self._sync_folder = sync_folder
        self._is_written = False
        self._student_is_step0 = True
        self._serves: Literal["step0", "student", "stale student"] = "step0"

    def to_student(self) -> None:
        """Serve the student as it is now."""
        if self._student_is_step0 or self._serves == "student":
            return
        if not self._is_written:
            write_sampler_weights(self._sync_folder, self._model)
            self._is_written = True
        self._load(self._sync_folder)
        self._serves = "student"

    def to_teacher(self) -> None:
        """Serve the step-0 weights."""
        if self._serves == "step0":
            return
        self._load(None)
        self._serves = "step0"

    def student_changed(self) -> None:
        """See `WeightSwitch.student_changed`."""
        self._student_is_step0 = False
        self._is_written = False
        if self._serves == "student":
            self._serves = "stale student"

    def _load(self, folder: Path | None) -> None:
        if isinstance(self._model, PeftModel):
            self._generator.use_adapter(folder)
        else:
            self._generator.load_weights(folder or self._step0_folder)


@dataclass
class Samplers:
    """Completions from the student and from the teacher."""

    student: Generator
    teacher: Generator
    """The same object as `student` where one engine serves both."""
    weights: WeightSwitch
    student_sampling: SamplingSettings
    refine_sampling: SamplingSettings

    def sample_student(
        self,
        requests: Sequence[GenerationRequest],
        *,
        sampling: SamplingSettings | None = None,
        with_logprobs: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """One completion of the current student a request."""
        self.weights.to_student()
        settings = sampling or self.student_sampling
        return self.student.generate(requests, settings, with_logprobs=with_logprobs, on_progress=on_progress)

    def sample_teacher(
        self, requests: Sequence[GenerationRequest], *, on_progress: ProgressCallback | None = None
    ) -> list[Completion]:
        """One completion of the frozen teacher a request, with the refinement's budget."""
        if self.teacher is self.student:
            self.weights.to_teacher()
        return self.teacher.generate(requests, self.refine_sampling, on_progress=on_progress)

    def student_changed(self) -> None:
        """The student has new weights: the next rollout is to come from them."""
        self.weights.student_changed()

    def close(self) -> None:
        """Free the generators' memory."""
        self.student.close()
        if self.teacher is not self.student:
            self.teacher.close()
