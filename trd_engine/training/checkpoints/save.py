"""Saves a run: when a checkpoint is due, what each process writes into it, and the thread that completes it.

Processes stop for as long as they write. The files are flushed, hashed and committed while the run continues: nothing
writes to them any more. At most one checkpoint is pending.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    begin_checkpoint,
    checkpoint_draft,
    commit_checkpoint,
    prune_checkpoints,
    write_extras,
    write_weights,
)
from trd_engine.training.checkpoints.model_card import versions
from trd_engine.training.checkpoints.state import TrainingState, write_state, write_student
from trd_engine.types import Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What of a run changes from checkpoint to checkpoint, besides weights and moments."""

    state: TrainingState
    trajectories: Sequence[Trajectory] | None
    """Trajectories of the round in progress; None while they are still to be collected."""
    heldout: Sequence[Trajectory]
    is_finished: bool


@dataclass
class CheckpointSaver:
    """Writes the checkpoints of one run. Every method is collective, except `has_failed` and `close`."""

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
    """Position of the newest checkpoint, complete or pending."""
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"), init=False)
    _pending: Future[None] | None = field(default=None, init=False)
    """The commit of the newest checkpoint, in the main process, until `finish` has seen its result."""

    def __post_init__(self) -> None:
        """Make a commit that fails stop the run: the next checkpoint, which would raise its error, may be hours
        away."""
        self.reporter.also_stop_if(self.has_failed)

    def has_failed(self) -> bool:
        """Return whether the pending commit has failed; `finish` raises its error."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

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
            if not is_collected:
                self.reporter.enter("training")

    def save_for_resume(self, progress: Progress, free_devices: Callable[[], None]) -> None:
        """Save what a stopped run resumes from, unless the newest checkpoint holds just that, and complete it.

        `free_devices` is called before the process waits for the commit, which takes minutes for large models.
        """
        is_nothing_new = progress.trajectories is None and progress.state.step in (0, self.saved_at[0])
        if not is_nothing_new and progress.state.position != self.saved_at:
            self._save(progress, merged=False)
        free_devices()
        self.finish()

    def save_final(self, progress: Progress, free_devices: Callable[[], None]) -> None:
        """Save the run's result, and complete it; `free_devices` is as in `save_for_resume`."""
        if self.saved_at != progress.state.position:
            self._save(progress, merged=self.config.checkpoints.merged)
        free_devices()
        self.finish()

    def finish(self) -> None:
        """Wait until the newest checkpoint is complete and reported; raise the error of its commit."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        self.reporter.world.wait()  # if a process left now, on a stop, torchrun would end the others

    def close(self) -> None:
        """Wait for a commit that is pending because the run has failed; that error is reported, not the commit's."""
        self._thread.shutdown()
        if self._pending is not None and (error := self._pending.exception()) is not None:
            logger.error("the newest checkpoint was not saved: %s", error)

    def _save(self, progress: Progress, *, merged: bool) -> None:
        """Write a checkpoint, and leave its commit to the thread."""
        state, world = progress.state, self.reporter.world
        self.reporter.enter("saving")
        self.finish()
        draft = checkpoint_draft(self.reporter.out_dir, state.step)
        owners = disk_owners(draft.parent, world)
        with ExitStack() as unfinished:
            if world.rank in owners:
                begin_checkpoint(draft)
                # A complete one has another name; half of one would keep a full disk full.
                unfinished.callback(shutil.rmtree, draft, ignore_errors=True)
            world.wait()
            formats = self._write(draft, progress, merged=merged)
            world.wait()
            collect_files(draft, owners, world)
            if world.is_main:
                score = next((row for row in state.scores if row.step == state.step), None)
                facts = {
                    "formats": formats,
                    "metrics": {"avg_at_k": score.avg_at_k, "pass_at_k": score.pass_at_k} if score else {},
                    "data_fingerprint": state.data_fingerprint,
                    "seed": self.config.seed,
                    "versions": versions(),
                }
                self._pending = self._thread.submit(self._commit, draft, state.step, facts, unfinished.pop_all())
        self.saved_at = state.position

    def _commit(self, draft: Path, step: int, facts: dict[str, Any], unfinished: ExitStack) -> None:
        """Flush and hash what is written, make it the checkpoint of `step`, and report it."""
        out_dir = self.reporter.out_dir
        with unfinished:
            folder = commit_checkpoint(draft, out_dir, step, **facts)
        if self.prune:
            prune_checkpoints(out_dir, self.config.checkpoints.keep)
        self.reporter.event("checkpoint", step=step, path=folder.relative_to(out_dir).as_posix())

    def _write(self, draft: Path, progress: Progress, *, merged: bool) -> list[str]:
        """Write each process's shards, and from the main one all that is whole; return the formats of the weights."""
        world, folder = self.reporter.world, draft / STATE_FOLDER
        student, dtype = self.models.student, export_dtype(self.config.student)
        formats = write_weights(draft, student, world, dtype=dtype, merged=merged)
        if world.is_main:
            write_extras(draft, self.config, progress.state, self.num_steps, self.tokenizer)
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
