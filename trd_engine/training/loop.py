"""The loop: collect, refine, train, evaluate, save; from a spec to a better student.

`distil` is the engine's entry. It reports to `Reporter`, and writes below `out_dir` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trd_engine.config import RunConfig
from trd_engine.models.folders import with_local_models
from trd_engine.runtime.distributed import open_world
from trd_engine.runtime.errors import SpecError, StopRequested
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.protocol import Task
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder, newest_checkpoint
from trd_engine.training.checkpoints.model_card import versions
from trd_engine.training.session import Session
from trd_engine.training.setup import open_session
from trd_engine.types import Problem, ScoreRow


@dataclass(frozen=True)
class RunResult:
    """What a finished run made."""

    scores: list[ScoreRow]
    """One row per evaluation, the baseline's first."""
    checkpoint: Path
    """Folder of the last checkpoint; ``model/`` or ``adapter/`` in it is the trained student."""


def distil(
    config: RunConfig,
    out_dir: Path,
    *,
    problems: Iterable[Problem | Mapping[str, Any]] | None = None,
    task: Task | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    resume_from: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    prune_checkpoints: bool = False,
) -> RunResult:
    """Run or resume one distillation.

    Args:
        config: The spec. Under ``torchrun`` every process passes the same.
        out_dir: Folder for events, trajectories and checkpoints. Processes on several machines need none that all of
            them see: what is complete is on the main process's disk.
        problems: Rows or `Problem` objects to train on, instead of `config.dataset`.
        task: Prompts and verifier, instead of the built-in task that `config.task` names.
        on_event: Called with each event, in the main process, after it is written to ``events.jsonl``; never twice at a
            time, though a checkpoint's event comes from another thread.
        resume_from: A checkpoint folder of this run; the run continues from it exactly.
        stop: Asked at every boundary (a step, a batch of samples). Once it returns True, the run saves a checkpoint
            that it can resume from, and raises `StopRequested`.
        prune_checkpoints: Delete all but the newest `checkpoints.keep`.

    Raises:
        EngineError: `code` and message are for the user.
        StopRequested: The run was asked to stop.
    """
    if resume_from is None and (other := newest_checkpoint(out_dir)) is not None:
        raise SpecError(
            f"{out_dir} already holds a run, up to {other.name}; resume it (--resume), or choose another folder"
        )
    config = with_local_models(config)
    with (
        open_world(config.devices) as world,
        Reporter(out_dir, stop=stop, world=world, on_event=on_event) as reporter,
    ):
        session = open_session(
            config, reporter, problems=problems, task=task, resume_from=resume_from, prune=prune_checkpoints
        )
        with closing(session.saver), closing(session):
            try:
                _train(session)
            except StopRequested:
                session.saver.save_for_resume(session.progress, free_devices=session.close)
                raise
            scores = session.state.scores
            summary = {"scores": [asdict(row) for row in scores], "versions": versions()}
            reporter.finished(session.state.step, summary)
    return RunResult(scores, checkpoint_folder(out_dir, session.state.step))


def _train(run: Session) -> None:
    """Run Trajectory-Refined Distillation, or an unrefined variant, from the baseline to the last checkpoint."""
    state, plan, collector = run.state, run.plan, run.collector

    # Evaluate the untrained student, or the step at which a resumed run was cut off.
    run.evaluate_if_due()

    while state.round < len(plan.rounds):
        if run.trajectories is None:  # a run that was resumed within a round has them
            request = run.request_round()
            # Roll out: the student answers each problem (y_o).
            rollouts = collector.roll_out(request)
            run.check_first_rollouts(rollouts)
            # Refine: the teacher rewrites each answer (y_r), in mode trd.
            refined = collector.refine(rollouts, request)
            # Verify: the task judges both.
            verified = collector.verify(refined)
            # Score: a served teacher gives its log-probabilities now; a local one computes them in each step.
            run.trajectories = collector.score(verified, request)
            run.write_round(run.trajectories)

        # Save: a checkpoint at a round's end waits for the next round's trajectories, and holds them too. Files are
        # hashed while the run continues; a checkpoint that cannot be completed stops it at the next boundary.
        run.saver.save_if_due(run.progress)

        # Diagnose a sample, before the first step changes the student.
        run.diagnose(run.trajectories)

        # Distil: one global batch a step. Evaluate before saving, so that a checkpoint knows its score.
        while not run.is_round_end:
            run.train_step(run.trajectories)
            run.evaluate_if_due()
            if not run.is_round_end:
                run.saver.save_if_due(run.progress)
            run.reporter.boundary()

        run.end_round()

    # Evaluate the result, and save it; the GPUs are free before the run waits for its files to be hashed.
    run.evaluate_if_due()
    run.saver.save_final(run.progress, free_devices=run.close)
