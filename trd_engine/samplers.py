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
from typing import Protocol

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

    def sync(self) -> None:
        """The student has been trained: what it was is stale from now on."""
        ...


class BorrowedWeights:
    """Generators that sample from the live modules: always the newest weights."""

    def to_student(self) -> None:
        """Nothing to do."""

    def to_teacher(self) -> None:
        """Nothing to do."""

    def sync(self) -> None:
        """Nothing to do."""


class ServedWeights:
    """An engine with weights of its own, that serves the student and, where it teaches itself, the teacher too."""

    def __init__(self, generator: Generator, model: TrainedModel, *, step0_folder: Path, sync_folder: Path) -> None:
        self._generator = generator
        self._model = model
        self._step0_folder = step0_folder
        self._sync_folder = sync_folder
        self._student_is_step0 = True
        self._serves_step0 = True

    def to_student(self) -> None:
        """Load the student as it was at the last `sync`."""
        if self._student_is_step0 or not self._serves_step0:
            return
        if isinstance(self._model, PeftModel):
            self._generator.use_adapter(self._sync_folder)
        else:
            self._generator.load_weights(self._sync_folder)
        self._serves_step0 = False

    def to_teacher(self) -> None:
        """Load the step-0 weights back."""
        if self._serves_step0:
            return
        if isinstance(self._model, PeftModel):
            self._generator.use_adapter(None)
        else:
            self._generator.load_weights(self._step0_folder)
        self._serves_step0 = True

    def sync(self) -> None:
        """Write the student's weights where the engine will read them."""
        write_sampler_weights(self._sync_folder, self._model)
        self._student_is_step0 = False
        # The engine's weights, if they are the student's, are now old ones: make `to_student` load again.
        self._serves_step0 = True


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

    def sync(self) -> None:
        """The student has new weights: the next rollout is to come from them."""
        self.weights.sync()

    def close(self) -> None:
        """Free the generators' memory."""
        self.student.close()
        if self.teacher is not self.student:
            self.teacher.close()
