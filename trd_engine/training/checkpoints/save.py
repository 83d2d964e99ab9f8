"""Saves a run: when a checkpoint is due, and what each process writes into it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from trd_data.prompts import PromptBuilder
from trd_engine.config import RunConfig
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.models.loading import export_dtype
from trd_engine.rollouts.files import HELDOUT, ROUND, round_folder
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.machine_files import collect_files, disk_owners
from trd_engine.training.checkpoints.checkpoint import (
    STATE_FOLDER,
    ExportExtras,
    begin_checkpoint,
    checkpoint_draft,
    checkpoint_folder,
    commit_checkpoint,
    prune_checkpoints,
    write_extras,
    write_weights,
)
from trd_engine.training.checkpoints.model_card import versions
from trd_engine.training.checkpoints.state import TrainingState, write_state, write_student
from trd_engine.types import Trajectory


@dataclass(frozen=True)
class Progress:
    """What of a run changes from checkpoint to checkpoint, besides weights and moments."""

    state: TrainingState
    trajectories: Sequence[Trajectory] | None
    """Of the round in progress; None while they are still to be collected."""
    heldout: Sequence[Trajectory]
    is_finished: bool


@dataclass
class CheckpointSaver:
    """Writes the checkpoints of one run. Every method is collective."""

    config: RunConfig
    reporter: Reporter
    models: ModelPair
    optimizer: torch.optim.Optimizer
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptBuilder
    num_steps: int
    prune: bool
    """Delete all but the newest `checkpoints.keep`."""
    saved_at: tuple[int, int] = (-1, -1)
    """Position of the newest checkpoint."""

    def save_if_due(self, progress: Progress) -> None:
        """Save every `checkpoints.every_steps` steps, and once with each round's trajectories.

        A round may take hours to collect and is never collected twice. A checkpoint that is kept for that alone has no
        merged model.
        """
        state, wanted = progress.state, self.config.checkpoints
        is_planned = state.step > 0 and state.step % wanted.every_steps == 0
        is_collected = state.round_step == 0
        if state.position != self.saved_at and (is_planned or is_collected) and not progress.is_finished:
            self._save(progress, merged=wanted.merged and is_planned)

    def save_for_resume(self, progress: Progress, free_devices: Callable[[], None]) -> None:
        """Save what a stopped run resumes from, unless the newest checkpoint holds just that.

        `free_devices` is called before the files are flushed and hashed, which takes minutes for large models.
        """
        is_nothing_new = progress.trajectories is None and progress.state.step in (0, self.saved_at[0])
        if not is_nothing_new and progress.state.position != self.saved_at:
            self._save(progress, merged=False, free_devices=free_devices)

    def save_final(self, progress: Progress, free_devices: Callable[[], None]) -> None:
        """Save the run's result; `free_devices` is as in `save_for_resume`."""
        if self.saved_at != progress.state.position:
            self._save(progress, merged=self.config.checkpoints.merged, free_devices=free_devices)

    def _save(self, progress: Progress, *, merged: bool, free_devices: Callable[[], None] = lambda: None) -> None:
        state, world = progress.state, self.reporter.world
        self.reporter.enter("saving")
        draft = checkpoint_draft(self.reporter.out_dir, state.step)
        owners = disk_owners(draft.parent, world)
        if world.rank in owners:
            begin_checkpoint(draft)
        world.wait()
        try:
            formats = self._write(draft, progress, merged=merged)
            world.wait()
            collect_files(draft, owners, world)
            free_devices()
            if world.is_main:
                score = next((row for row in state.scores if row.step == state.step), None)
                commit_checkpoint(
                    draft,
                    self.reporter.out_dir,
                    state.step,
                    formats=formats,
                    metrics={"avg_at_k": score.avg_at_k, "pass_at_k": score.pass_at_k} if score else {},
                    data_fingerprint=state.data_fingerprint,
                    seed=self.config.seed,
                    versions=versions(),
                )
                if self.prune:
                    prune_checkpoints(self.reporter.out_dir, self.config.checkpoints.keep)
        finally:  # a committed one has another name; half of one would keep a full disk full
            if world.rank in owners:
                shutil.rmtree(draft, ignore_errors=True)
        world.wait()  # if a process left now, on a stop, torchrun would end the others
        self.saved_at = state.position
        folder = checkpoint_folder(self.reporter.out_dir, state.step)
        self.reporter.event("checkpoint", step=state.step, path=folder.relative_to(self.reporter.out_dir).as_posix())
        if state.round_step > 0 and not progress.is_finished:
            self.reporter.enter("training")

    def _write(self, draft: Path, progress: Progress, *, merged: bool) -> list[str]:
        """Write each process's shards, and from the main one all that is whole; return the formats of the weights."""
        world, folder = self.reporter.world, draft / STATE_FOLDER
        student, dtype = self.models.student, export_dtype(self.config.student)
        formats = write_weights(draft, student, world, dtype=dtype, merged=merged)
        if world.is_main:
            write_extras(draft, ExportExtras.of(self.config, progress.state, self.num_steps, self.tokenizer))
        write_state(folder, progress.state, student, self.optimizer, world)
        if formats == ["full"] and dtype is not None:
            write_student(folder, student, world)
        if self.models.teacher_update is not None:
            self.models.teacher_update.write(folder, world)
        if world.is_main:
            if progress.trajectories is not None:
                ROUND.link(round_folder(self.reporter.out_dir, progress.state.round) / STATE_FOLDER, folder)
            if progress.heldout:
                HELDOUT.write(folder, progress.heldout, self.prompts)
        return formats
