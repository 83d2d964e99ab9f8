"""The scorer: another model, or the student's own weights, of step 0 or of a little while ago.

A teacher gives hidden states and a head; the loss turns them into log-probabilities a chunk at a time,
so that no [tokens × vocabulary] is ever held.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from trd_engine.models.attention.packing import ScoredTokens, hidden_states
from trd_engine.models.fsdp import RunUnsharded, run_directly
from trd_engine.models.head import OutputHead, head_of
from trd_engine.models.loading import TrainedModel
from trd_engine.models.lora import answering_with


class Teacher:
    """Scores completions without gradient. Its weights are its own affair: `teacher_update` may move them."""

    def __init__(
        self,
        model: TrainedModel,
        *,
        shares_student: bool = False,
        adapter: str | None = None,
        run_unsharded: RunUnsharded = run_directly,
    ) -> None:
        """`model` is a model of its own or, with `shares_student`, the student's PEFT model, which teaches with
        `adapter` or, where that is None, with none. `enter`: where several processes divide it."""
        self._model = model
        self._run_unsharded = run_unsharded
        self._shares_student = shares_student
        self._adapter = adapter

    @property
    def model(self) -> TrainedModel:
        """The module, to sample refinements from."""
        return self._model

    @property
    def shares_student(self) -> bool:
        """True where the module is the student's own, with the teacher's adapter or with none."""
        return self._shares_student

    @property
    def adapter(self) -> str | None:
        """Its adapter in the student's module, where it shares that."""
        return self._adapter

    def head(self) -> OutputHead:
        """Its output head; where the model is divided, whole from the last call of `hidden` on."""
        return head_of(self._model)

    @torch.no_grad()
    def hidden(self, tokens: ScoredTokens) -> Tensor:
        """Hidden states [N, G] at the trained tokens' predicting positions."""
        was_training = self._model.training
        self._model.eval()  # the student's dropout, where it has one, is not the teacher's
        try:
            with self._weights():
                hidden_NG: Tensor = self._run_unsharded(lambda: hidden_states(self._model, tokens))
                return hidden_NG
        finally:
            self._model.train(was_training)

    def _weights(self) -> AbstractContextManager[None]:
        return answering_with(self._model, self._adapter) if self._shares_student else nullcontext()
