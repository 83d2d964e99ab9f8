"""Student and teacher of a run as one object, with all that turns a micro-batch into a loss."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.token_weights import TokenWeigher
from trd_engine.models.fsdp import RunUnsharded, local_shard, run_directly
from trd_engine.models.loading import TrainedModel
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.teachers.local import Teacher
from trd_engine.teachers.moving_weights import TeacherUpdate
from trd_engine.teachers.served import ServedTeacher


@dataclass(frozen=True)
class ModelPair:
    """The models and the loss between them; the same in every step of a run."""

    student: TrainedModel
    teacher: Teacher | None
    """None if it is served: its scores come with the batch, and without them the loss is the cross-entropy."""
    divergence: Divergence
    """Divergence of the first step; a schedule may change it."""
    compute_dtype: torch.dtype
    """Dtype of the matrix products in the passes."""
    epistemic_token_ids: tuple[int, ...]
    weigher: TokenWeigher | None = None
    """None: all tokens of a batch have the same weight."""
    is_cross_entropy: bool = False
    """True if the batches have no scores: metrics then neither claim a divergence nor describe the teacher."""
    served_teacher: ServedTeacher | None = None
    teacher_update: TeacherUpdate | None = None
    """None: the teacher's weights never move."""
    world: World = ALONE
    """The processes that share a step's batch."""
    run_student_unsharded: RunUnsharded = run_directly
    """Runs a function while the student's weights outside its layers are gathered, see `trd_engine.models.fsdp`."""

    @property
    def device(self) -> torch.device:
        """Where the student is trained."""
        return next(self.student.parameters()).device

    @property
    def heldout_divergence(self) -> Divergence:
        """The divergence that runs of every variant report: forward KL at temperature 1 on all scored tokens."""
        if self.teacher is not None or self.is_cross_entropy:
            return Divergence()
        return Divergence(support="top_k", teacher_top_k=self.divergence.teacher_top_k)

    @property
    def heldout_metric(self) -> str:
        """The metric's name of `heldout_divergence`."""
        if self.is_cross_entropy:
            return "cross_entropy"
        return "forward_kl" if self.teacher is not None else "top_k_forward_kl"

    def autocast(self) -> AbstractContextManager[object]:
        """Compute matrix products in the compute dtype, unless that is the weights' own fp32."""
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, self.compute_dtype, enabled=enabled)

    def free_memory(self, optimizer: torch.optim.Optimizer) -> None:
        """Free the memory of weights, gradients and moments. Nothing can be computed with the models afterwards."""
        held = [*self.student.parameters(), *self.student.buffers()]
        held += [parameter.grad for parameter in self.student.parameters() if parameter.grad is not None]
        held += [] if self.teacher is None else [*self.teacher.model.parameters(), *self.teacher.model.buffers()]
        held += [value for moments in optimizer.state.values() for value in moments.values()]
        for storage in (local_shard(tensor).untyped_storage() for tensor in held):
            if storage.resizable():  # not one that maps a file
                storage.resize_(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
