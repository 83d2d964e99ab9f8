"""A local teacher: another model, or the student's own weights of step 0 or of some steps ago.

It gives hidden states and an output head. The loss computes log-probabilities from them one chunk of tokens at a time,
so that [tokens × vocabulary] is never held.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from trd_engine.models.attention.packing import ScoredTokens, hidden_states
from trd_engine.models.fsdp import RunUnsharded, run_directly
from trd_engine.models.head import OutputHead, head_of
from trd_engine.models.loading import TrainedModel
from trd_engine.models.lora import answering_with


class Teacher:
    """Scores completions without gradient. `TeacherUpdate` may change its weights."""

    def __init__(
        self,
        model: TrainedModel,
        *,
        shares_student: bool = False,
        adapter: str | None = None,
        run_unsharded: RunUnsharded = run_directly,
        free_full_weights: Callable[[], None] = lambda: None,
    ) -> None:
        """Take another model or, with `shares_student`, the student's PEFT model, which then uses `adapter`, or no
        adapter if that is None. `run_unsharded` runs a pass over a sharded model, and `free_full_weights` frees the
        head that it leaves whole, see `models.fsdp`."""
        self.model = model
        """The module, which also samples the refinements."""
        self.shares_student = shares_student
        self.adapter = adapter
        self._run_unsharded = run_unsharded
        self.free_full_weights = free_full_weights

    def head(self) -> OutputHead:
        """Return the output head. A sharded model's is whole from a call of `hidden` to one of `free_full_weights`."""
        return head_of(self.model)

    @torch.no_grad()
    def hidden(self, tokens: ScoredTokens) -> Tensor:
        """Compute the hidden states [N, G] at the positions that predict the trained tokens."""
        was_training = self.model.training
        self.model.eval()  # the teacher has no dropout, even if it shares the student's module
        try:
            with answering_with(self.model, self.adapter) if self.shares_student else nullcontext():
                hidden_NG: Tensor = self._run_unsharded(lambda: hidden_states(self.model, tokens))
                return hidden_NG
        finally:
            self.model.train(was_training)
