"""The loop: collect, refine, train, evaluate, save; from a spec to a better student.

`run` is the engine's one entry. Everything it learns goes to the `Reporter`; everything it makes goes
below `out_dir`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from trd_engine.config import RunConfig
from trd_engine.models.folders import with_local_models
from trd_engine.runtime.distributed import open_world
from trd_engine.runtime.errors import SpecError, StopRequested
from trd_engine.runtime.events import Reporter
from trd_engine.training.checkpoints.checkpoint import newest_checkpoint
from trd_engine.training.session import Session
from trd_engine.training.setup import open_session


def run(
    config: RunConfig,
    out_dir: Path,
    *,
    resume_from: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    prune_checkpoints: bool = False,
) -> None:
    """Run, or go on with, one distillation.

    `resume_from`: a checkpoint folder of this run; it goes on from there exactly. `stop` is asked at every
    boundary (a step, a batch of samples); once it answers True the run saves what it can be resumed from
    and raises `StopRequested`. `prune_checkpoints` deletes all but the newest `checkpoints.keep`.

    Under ``torchrun`` every process calls it alike, and `out_dir` is one folder that all of them see.

    Raises `EngineError`, whose code and message are for the user.
    """
    if resume_from is None and (other := newest_checkpoint(out_dir)) is not None:
        raise SpecError(
            f"{out_dir} holds a run already, up to {other.name}; go on with it (--resume), or give another folder"
        )
    config = with_local_models(config)
    with open_world(config.devices) as world, Reporter(out_dir, stop=stop, world=world) as reporter:
        session = open_session(config, out_dir, reporter, resume_from=resume_from, prune=prune_checkpoints)
        try:
            _distil(session)
            summary = {"scores": [asdict(row) for row in session.state.scores]}
            reporter.finished(session.state.step, summary)
        except StopRequested:
            session.save_for_resume()
            raise
        finally:
            session.close()


def _distil(session: Session) -> None:
    state, plan = session.state, session.plan

    # How good is the student before anything is trained, or at the step whose evaluation was cut off?
    session.evaluate_if_due(state.step)

    while state.round < len(plan.rounds):
        # Collect: the student's rollouts, refined by the teacher where the mode does so, and verified.
        session.collect_round()

        # A checkpoint at the end of a round waits for the next round's rollouts, so that it holds them too.
        session.save_if_due()

        # Diagnose a sample of them, before the first step makes another student.
        session.report_round()

        # Distil: a global batch a step.
        while state.round_step < plan.rounds[state.round].num_steps:
            session.train_step()
            session.evaluate_if_due(state.step)  # first: a checkpoint tells its own score
            if not session.is_round_end:
                session.save_if_due()
            session.reporter.boundary()

        session.end_round()

    # How good is it now, and here it is.
    session.evaluate_if_due(state.step)
    session.save_final()
