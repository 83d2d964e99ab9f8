"""Who samples what: the student's rollouts, the teacher's refinements, and how new weights reach a sampler.

Four arrangements, chosen by the spec and hidden behind `Samplers`:

- transformers: each role borrows the module that trains or scores. Nothing is copied, nothing is synced.
- vLLM, with another model as the teacher: an engine for each.
- a served teacher refines by text, whatever samples the student.
- vLLM, teaching itself: one engine for both roles. Its weights are switched between the teacher's and the
  student's, by the adapter with LoRA and by loading with full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peft import PeftModel

from trd_engine.checkpoint import sampler_weights_folder, write_sampler_weights
from trd_engine.distributed import ALONE, World
from trd_engine.generation.openai_compatible import EndpointTeacher, TextRequest
from trd_engine.generation.protocol import Generator, ProgressCallback
from trd_engine.lora import STUDENT_ADAPTER, TEACHER_ADAPTER
from trd_engine.models import TrainedModel
from trd_engine.prompts import BuiltPrompt
from trd_engine.sharding import put_together
from trd_engine.types import Completion, GenerationRequest, SamplingSettings


class WeightSwitch(Protocol):
    """Makes one role's weights the ones that its generator answers with."""

    def to_student(self) -> None:
        """The newest student."""
        ...

    def to_teacher(self) -> None:
        """The newest teacher, where the student teaches itself: for a frozen one the step-0 weights."""
        ...

    def student_changed(self) -> None:
        """An optimizer step was taken: what is served as the student is stale from now on."""
        ...

    def teacher_changed(self) -> None:
        """The teacher's weights moved: what is served as the teacher is stale from now on."""
        ...


class BorrowedWeights:
    """Generators that sample from the live modules: always the newest weights."""

    def to_student(self) -> None:
        """Nothing to do."""

    def to_teacher(self) -> None:
        """Nothing to do."""

    def student_changed(self) -> None:
        """Nothing to do."""

    def teacher_changed(self) -> None:
        """Nothing to do."""


@dataclass
class _Role:
    """Whose weights an engine may serve, and how new they are."""

    model: TrainedModel
    adapter: str
    folder: Path
    """Where they are written for the engine to load."""
    world: World = ALONE
    version: int = 0
    """0: still those of step 0, which the engine has from the start."""
    written: int | None = None
    """The version that was written last."""

    def write(self) -> Path:
        """Where the newest weights are, for the engine to load. Collective."""
        if self.written != self.version:
            model = self.model if self.world.size == 1 else put_together(self.model, self.world)
            if model is not None:
                write_sampler_weights(self.folder, model, self.adapter)
            self.world.wait()
            self.written = self.version
        return sampler_weights_folder(self.folder, self.model, self.adapter)


class ServedWeights:
    """An engine with weights of its own, that serves the student and, where it teaches itself, the teacher too.

    A role's weights are written and loaded when its next sample is asked for, not after every step.
    """

    def __init__(
        self,
        generator: Generator,
        model: TrainedModel,
        *,
        step0_folder: Path,
        sync_folder: Path,
        teacher: TrainedModel | None = None,
        world: World = ALONE,
    ) -> None:
        """`model` is the student, `teacher` the module that a student which teaches itself does it with.

        Of several processes each has a generator of its own, and all see `sync_folder`.
        """
        self._generator = generator
        self._step0_folder = step0_folder
        self._student = _Role(model, STUDENT_ADAPTER, sync_folder / "student", world)
        self._teacher = _Role(teacher or model, TEACHER_ADAPTER, sync_folder / "teacher", world)
        self._served: tuple[_Role | None, int] = (None, 0)

    def to_student(self) -> None:
        """Serve the student as it is now."""
        self._serve(self._student)

    def to_teacher(self) -> None:
        """Serve the teacher as it is now."""
        self._serve(self._teacher)

    def student_changed(self) -> None:
        """See `WeightSwitch.student_changed`."""
        self._student.version += 1

    def teacher_changed(self) -> None:
        """See `WeightSwitch.teacher_changed`."""
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


@dataclass
class Samplers:
    """Completions from the student and from the teacher."""

    student: Generator
    teacher: Generator
    """The same object as `student` where one engine serves both."""
    weights: WeightSwitch
    student_sampling: SamplingSettings
    refine_sampling: SamplingSettings
    served_teacher: EndpointTeacher | None = None
    """Refines in the place of `teacher`, where there is one."""

    def to_student(self) -> None:
        """Load the newest student where it is served from; of several processes all come here together."""
        self.weights.to_student()

    def to_teacher(self) -> None:
        """Load the teacher where one engine serves both; of several processes all come here together."""
        if self.teacher is self.student and self.served_teacher is None:
            self.weights.to_teacher()

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
        """One completion of the teacher a request, with the refinement's budget."""
        self.to_teacher()
        return self.teacher.generate(requests, self.refine_sampling, on_progress=on_progress)

    def refine(
        self, prompts: Sequence[BuiltPrompt], seeds: Sequence[int], *, on_progress: ProgressCallback | None = None
    ) -> list[Completion]:
        """The teacher's answer to each refining prompt; a served one is given the user's turn alone."""
        pairs = list(zip(prompts, seeds, strict=True))
        if self.served_teacher is not None:
            texts = [TextRequest(prompt.message, seed) for prompt, seed in pairs]
            return self.served_teacher.complete(texts, self.refine_sampling, on_progress=on_progress)
        requests = [GenerationRequest(prompt.token_ids, seed) for prompt, seed in pairs]
        return self.sample_teacher(requests, on_progress=on_progress)

    def no_refinement(self) -> Completion:
        """In the place of an answer to a prompt that nobody is asked."""
        return Completion((), "", "length") if self.served_teacher is None else self.served_teacher.no_answer()

    def student_changed(self) -> None:
        """The student has new weights: the next rollout is to come from them."""
        self.weights.student_changed()

    def teacher_changed(self) -> None:
        """The teacher's weights moved: the next refinement is to come from them."""
        self.weights.teacher_changed()

    def rest(self) -> None:
        """Give the generators' memory to training, where the platform can; each wakes when it is next asked."""
        self.student.rest()
        if self.teacher is not self.student:
            self.teacher.rest()

    def close(self) -> None:
        """Free the generators' memory."""
        self.student.close()
        if self.teacher is not self.student:
            self.teacher.close()
