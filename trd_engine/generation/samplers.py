"""Sample the student's rollouts and the teacher's refinements, and bring new weights to the samplers.

`Samplers` hides five arrangements, one of which the spec chooses:

- transformers: each role borrows the module that trains or scores. Nothing is copied or synced.
- vLLM and a separate teacher model: one engine each.
- A pool of servers: they serve the step-0 weights, and the adapter of the version that a request names.
- A served teacher refines by text, whatever engine samples the student.
- vLLM and a student that is its own teacher: one engine for both roles, whose weights are switched between them: by
  adapter with LoRA, by loading with full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trd_data.prompts import BuiltPrompt
from trd_engine.generation.protocol import Generator, TextGenerator, TextRequest
from trd_engine.generation.weight_sync import ServedWeights
from trd_engine.types import Completion, CompletionCallback, GenerationRequest, ProgressCallback, SamplingSettings


@dataclass
class Samplers:
    """Completions from the student and from the teacher."""

    student: Generator
    teacher: Generator
    """The same object as `student` if one engine serves both."""
    weights: ServedWeights | None
    """None: the generators borrow the live modules, whose weights are always the newest."""
    student_sampling: SamplingSettings
    refine_sampling: SamplingSettings
    served_teacher: TextGenerator | None = None
    """Refines instead of `teacher`, if there is one."""

    def to_student(self) -> None:
        """Load the newest student weights if an engine serves them. Collective."""
        self._take_turn(self.student)
        if self.weights is not None:
            self.weights.to_student()

    def to_teacher(self) -> None:
        """Load the teacher's weights if one engine serves both. Collective."""
        self._take_turn(self.teacher)
        if self.weights is not None and self.teacher is self.student and self.served_teacher is None:
            self.weights.to_teacher()

    def sample_student(
        self,
        requests: Sequence[GenerationRequest],
        *,
        sampling: SamplingSettings | None = None,
        with_logprobs: bool = False,
        on_progress: ProgressCallback | None = None,
        on_completion: CompletionCallback | None = None,
    ) -> list[Completion]:
        """Return one completion per request from the current student."""
        self.to_student()
        settings = sampling or self.student_sampling
        return self.student.generate(
            requests, settings, with_logprobs=with_logprobs, on_progress=on_progress, on_completion=on_completion
        )

    def refine(
        self,
        prompts: Sequence[BuiltPrompt],
        seeds: Sequence[int],
        *,
        on_progress: ProgressCallback | None = None,
        on_completion: CompletionCallback | None = None,
    ) -> list[Completion]:
        """Return the teacher's answer to each refining prompt, within the refinement's budget. A served teacher is
        given the user's turn alone."""
        pairs = list(zip(prompts, seeds, strict=True))
        if self.served_teacher is not None:
            texts = [TextRequest(prompt.message, seed) for prompt, seed in pairs]
            return self.served_teacher.complete(
                texts, self.refine_sampling, on_progress=on_progress, on_completion=on_completion
            )
        self.to_teacher()
        requests = [GenerationRequest(prompt.token_ids, seed) for prompt, seed in pairs]
        return self.teacher.generate(
            requests, self.refine_sampling, on_progress=on_progress, on_completion=on_completion
        )

    def no_refinement(self) -> Completion:
        """Return the empty completion of a prompt that is not sent."""
        return Completion((), "", "length") if self.served_teacher is None else self.served_teacher.no_answer()

    def student_changed(self) -> None:
        """Note that the student has new weights, which the next rollout must come from."""
        if self.weights is not None:
            self.weights.student_changed()

    def teacher_changed(self) -> None:
        """Note that the teacher has new weights, which the next refinement must come from."""
        if self.weights is not None:
            self.weights.teacher_changed()

    def _take_turn(self, generator: Generator) -> None:
        """Free the other generator's memory before `generator` wakes up: there is room for one."""
        for other in (self.student, self.teacher):
            if other is not generator:
                other.sleep()

    def sleep(self) -> None:
        """Free the generators' memory for training, if the platform can; each wakes up at its next use."""
        self.student.sleep()
        if self.teacher is not self.student:
            self.teacher.sleep()

    def close(self) -> None:
        """Free the generators' memory."""
        self.student.close()
        if self.teacher is not self.student:
            self.teacher.close()
