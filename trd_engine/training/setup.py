"""Putting a run together: everything is loaded and checked before anything is sampled or trained."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging as transformers_logging

from trd_engine.config import RunConfig
from trd_engine.data.problem_sets import load_problem_sets
from trd_engine.distillation.losses.divergence import divergence_of
from trd_engine.distillation.scoring import ScoringSetup
from trd_engine.distillation.token_weights import make_weigher
from trd_engine.evaluation.diagnosis.stage import RoundDiagnosis
from trd_engine.evaluation.diagnosis.token_places import epistemic_token_ids
from trd_engine.models.loading import special_token_ids
from trd_engine.rollouts.files import HELDOUT, ROUND
from trd_engine.runtime.distributed import World
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.hardware import keep_freed_memory
from trd_engine.runtime.seeds import seed_everything
from trd_engine.tasks.registry import load_task
from trd_engine.tasks.steps import epistemic_onsets
from trd_engine.training.checkpoints.checkpoint import STATE_FOLDER, checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest
from trd_engine.training.checkpoints.resume_checks import (
    _require_same_data,
    _require_same_evaluation,
    require_same_run,
    require_same_weights,
    run_identity,
    weights_identity,
)
from trd_engine.training.checkpoints.state import TrainingState, read_state, restore_optimizer, restore_random
from trd_engine.training.model_setup import (
    LoadedModels,
    load_models,
    make_prompt_builders,
    make_samplers,
    report_packing,
)
from trd_engine.training.optim import make_optimizer
from trd_engine.training.plan import plan_run
from trd_engine.training.session import Session


def open_session(
    config: RunConfig, out_dir: Path, reporter: Reporter, *, resume_from: Path | None, prune: bool
) -> Session:
    """Load and check everything, and put a resumed run back where its checkpoint was."""
    reporter.phase("preparing", round_index=0, num_rounds=config.rounds, step=0, num_steps=0)
    seed_everything(config.seed)
    transformers_logging.disable_progress_bar()  # the run has its own progress; bars only litter the log
    if resume_from is not None:
        verify_manifest(resume_from)
    task = load_task(config.task)
    models = load_models(config, resume_from, reporter.world)
    keep_freed_memory(models.device)
    report_packing(models, reporter)
    if models.served_teacher is not None:
        models.served_teacher.report(reporter)
        config = config.model_copy(update={"loss": models.served_teacher.loss})
    prompts, teacher_prompts = make_prompt_builders(config, models, task)
    problems = load_problem_sets(config, prompts, teacher_prompts, reporter)
    plan = plan_run(problems.train, config)
    reporter.boundary()
    setup = _scoring_setup(config, models, reporter.world)
    session = Session(
        config=config,
        out_dir=out_dir,
        reporter=reporter,
        models=models,
        task=task,
        prompts=prompts,
        teacher_prompts=teacher_prompts,
        problems=problems,
        plan=plan,
        samplers=make_samplers(config, models, out_dir, reporter),
        setup=setup,
        diagnosis=RoundDiagnosis(
            config=config,
            setup=setup,
            task=task,
            teacher_prompts=teacher_prompts,
            tokenizer=models.tokenizer,
            device=models.device,
            max_tokens=models.pass_tokens(config),
        ),
        optimizer=make_optimizer(models.student, config.optim),
        state=TrainingState(
            data_fingerprint=problems.fingerprint,
            evaluation_fingerprint=problems.evaluation_fingerprint,
            identity={**run_identity(config), **weights_identity(config)},
        ),
        prune=prune,
    )
    if resume_from is not None:
        _restore(session, resume_from)
    _plan_eta(session)
    return session


def _scoring_setup(config: RunConfig, models: LoadedModels, world: World) -> ScoringSetup:
    return ScoringSetup(
        student=models.student,
        teacher=models.teacher,
        divergence=divergence_of(config.loss, models.served_teacher.top_k if models.served_teacher else None),
        compute_dtype=models.compute_dtype,
        epistemic_token_ids=epistemic_token_ids(models.tokenizer, epistemic_onsets(config.task)),
        weigher=make_weigher(config.loss.token_weights, special_token_ids(config.student, models.tokenizer)),
        is_cross_entropy=config.loss.divergence == "cross_entropy",
        world=world,
        run_student_unsharded=models.run_student_unsharded,
    )


def _restore(session: Session, checkpoint: Path) -> None:
    folder = checkpoint / STATE_FOLDER
    state = read_state(folder)
    require_same_run(state.identity, session.config)
    require_same_weights(state.identity, weights_identity(session.config))
    problems, former = session.problems, session.problems.former_fingerprints
    if state.data_fingerprint != former[problems.fingerprint]:
        _require_same_data("data", state.data_fingerprint, problems.fingerprint)
    # Compared where there is none too: a run that held problems out, given evaluation data, would train on them.
    found = problems.evaluation_fingerprint
    if found is None or state.evaluation_fingerprint != former[found]:
        _require_same_evaluation(state.evaluation_fingerprint, found)
    session.state = state
    restore_optimizer(folder, session.models.student, session.optimizer)
    restore_random(folder)
    session.trajectories = ROUND.read(folder, session.problems.train)
    session.heldout = HELDOUT.read(folder, session.problems.evaluation) or []
    if state.step > 0:
        session.samplers.student_changed()
    if session.models.teacher_update is not None:
        session.models.teacher_update.restore(folder)
        session.samplers.teacher_changed()
    # One that lacks what this run will soon have, trajectories or the last score, is written again.
    is_whole = session.trajectories is not None and not session.is_finished
    is_result = state.round >= len(session.plan.rounds) and checkpoint == checkpoint_folder(session.out_dir, state.step)
    if is_whole or is_result:
        session.saved_at = state.position


def _plan_eta(session: Session) -> None:
    config, state, eta = session.config, session.state, session.reporter.eta
    num_rounds_left = session.plan.rounds[state.round + (session.trajectories is not None) :]
    num_trajectories = sum(r.num_trajectories for r in num_rounds_left)
    eta.plan("rollout", num_trajectories)
    if config.refines:
        eta.plan("refining", num_trajectories)
    eta.plan("training", session.plan.num_steps - state.step)
    every = config.evaluation.every_steps
    due = {0, session.plan.num_steps, *(range(every, session.plan.num_steps, every) if every else ())}
    eta.plan("evaluating", len(due - set(state.evaluated_at)) * len(session.problems.evaluation) * config.evaluation.k)
