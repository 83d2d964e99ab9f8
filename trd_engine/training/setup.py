"""Sets a run up: everything is loaded and checked before anything is sampled or trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from trd_data.prompts import PromptBuilder
from trd_engine.config import RunConfig
from trd_engine.data.problem_sets import MAX_LISTED, ProblemSets, PromptBudgets, load_problem_sets
from trd_engine.distillation.batching import pass_tokens
from trd_engine.distillation.sequences import Batcher
from trd_engine.evaluation.diagnosis.stage import RoundDiagnosis
from trd_engine.evaluation.monitor import Monitor
from trd_engine.models.loading import require_context
from trd_engine.rollouts.collect import Collector
from trd_engine.rollouts.files import HELDOUT, ROUND, round_folder
from trd_engine.rollouts.verify import Verifier
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.hardware import keep_freed_memory
from trd_engine.runtime.seeds import seed_everything
from trd_engine.tasks.protocol import Task
from trd_engine.tasks.registry import load_task
from trd_engine.training.checkpoints.checkpoint import STATE_FOLDER, checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest
from trd_engine.training.checkpoints.resume_checks import (
    require_same_data,
    require_same_run,
    require_same_weights,
    run_identity,
    weights_identity,
)
from trd_engine.training.checkpoints.save import CheckpointSaver
from trd_engine.training.checkpoints.state import (
    TrainingState,
    read_state,
    restore_optimizer,
    restore_random,
    restore_student,
)
from trd_engine.training.model_setup import (
    bytes_for_a_pass,
    load_models,
    load_tokenizers,
    make_prompt_builders,
    make_samplers,
    open_served_teacher,
    report_adapter,
    report_packing,
    report_stop_ids,
)
from trd_engine.training.optim import make_optimizer
from trd_engine.training.plan import plan_run
from trd_engine.training.session import Session
from trd_engine.types import Problem


def open_session(
    config: RunConfig,
    reporter: Reporter,
    *,
    problems: Iterable[Problem | Mapping[str, Any]] | None = None,
    task: Task | None = None,
    resume_from: Path | None = None,
    prune: bool = False,
) -> Session:
    """Load and check everything, and put a resumed run back to its checkpoint."""
    reporter.phase("preparing", round_index=0, num_rounds=config.rounds, step=0, num_steps=0)
    seed_everything(config.seed)
    transformers_logging.disable_progress_bar()  # the run reports its own progress; bars would fill the log
    if resume_from is not None:
        verify_manifest(resume_from)
    task = task or load_task(config.task)
    tokenizers = load_tokenizers(config)
    report_stop_ids(config, tokenizers, reporter)
    served = open_served_teacher(config, tokenizers.student, resume_from, reporter)
    if served is not None:
        config = config.model_copy(update={"loss": served.loss})
    models = load_models(config, tokenizers.student, served, resume_from, reporter.world)
    keep_freed_memory(models.device)
    report_packing(models, reporter)
    report_adapter(models, config, reporter)
    prompts, teacher_prompts = make_prompt_builders(config, tokenizers, task)
    sets = _load_problems(config, prompts, teacher_prompts.builder, reporter, problems)
    plan = plan_run(sets.train, config)
    reporter.boundary()
    samplers = make_samplers(config, models, tokenizers, reporter)
    collector = Collector(samplers, prompts, Verifier(task), reporter, teacher_prompts, config.refines, served)
    teacher = models.teacher.model if models.teacher is not None else None
    free_bytes = bytes_for_a_pass(models, samplers, config.sampling)
    most = pass_tokens(config.optim.micro_batch_tokens, models.student, teacher, models.compute_dtype, free_bytes)
    max_tokens = most.at_most(config.max_pass_tokens)
    context = None if served is not None else config.loss.teacher_context
    batcher = Batcher(teacher_prompts, context, max_tokens, models.device, reporter.world)
    optimizer = make_optimizer(models.student, config.optim)
    batch_size = min(config.optim.batch_size, plan.rounds[0].num_trajectories)
    monitor = Monitor(
        config.evaluation, config.seed, sets, collector, models, batcher, config.is_privileged, batch_size
    )
    tokenizer = tokenizers.student
    diagnosis = RoundDiagnosis(config.diagnosis, models, task, teacher_prompts, tokenizer, config.seed, max_tokens)
    saver = CheckpointSaver(config, reporter, models, optimizer, tokenizer, prompts, plan.num_steps, prune)
    state = TrainingState(
        sets.fingerprint,
        evaluation_fingerprint=sets.evaluation_fingerprint,
        identity={**run_identity(config), **weights_identity(config)},
    )
    session = Session(config, reporter, models, plan, state, collector, batcher, monitor, diagnosis, optimizer, saver)
    if resume_from is not None:
        _restore(session, resume_from, sets)
    if config.strict:
        reporter.require_no_warnings()
    reporter.track(session.position)
    _plan_eta(session)
    return session


def _load_problems(
    config: RunConfig,
    prompts: PromptBuilder,
    teacher_prompts: PromptBuilder,
    reporter: Reporter,
    given: Iterable[Problem | Mapping[str, Any]] | None,
) -> ProblemSets:
    """Load the problems that fit. If the teacher sees only x and y*, report how many references lose their tail.

    Raises `ContextTooLongError` if a cut reference and the text to be scored do not fit the model. In the refine
    context, cuts are reported prompt by prompt, see `refine`.
    """
    budget = config.refine.max_prompt_tokens
    budgets = PromptBudgets(
        prompts, config.sampling.max_prompt_tokens, teacher_prompts, budget, config.refines, config.is_privileged
    )
    sets = load_problem_sets(
        config.dataset, config.evaluation, config.task, config.seed, budgets, reporter, given=given
    )
    if config.strict:
        reporter.require_no_warnings()  # before the samplers' engines are built
    if not config.is_privileged or config.loss.teacher_context == "refine":
        return sets
    built = {p.id: teacher_prompts.privileged(p, max_tokens=budget) for p in sets.train}
    require_context(
        "student (which teaches itself)",
        config.student,
        # The longest actual prompt: few references come near the budget, which would refuse too much.
        prompt_tokens=max(len(prompt.token_ids) for prompt in built.values()),
        new_tokens=config.max_target_tokens,
        fields="the longest prompt with its reference (refine.max_prompt_tokens bounds it) + max_new_tokens",
    )
    cut = {name: prompt.num_cut_solution_tokens for name, prompt in built.items() if prompt.num_cut_solution_tokens}
    if cut:
        reporter.notice(
            "warn",
            "references_cut",
            f"the references of {len(cut)} of {len(sets.train)} problems lose their tail in the teacher's prompt: "
            f"with them it is over refine.max_prompt_tokens = {budget}",
            remedy="raise refine.max_prompt_tokens",
            count=len(cut),
            example=f"problem {next(iter(cut))}",
            problems=[{"problem_id": n, "num_cut_tokens": k} for n, k in list(cut.items())[:MAX_LISTED]],
            num_cut=len(cut),
        )
    return sets


def _restore(session: Session, checkpoint: Path, sets: ProblemSets) -> None:
    folder = checkpoint / STATE_FOLDER
    state = read_state(folder)
    require_same_run(state.identity, session.config)
    require_same_weights(state.identity, weights_identity(session.config))
    require_same_data(state, sets.fingerprint, sets.evaluation_fingerprint)
    session.state = state
    restore_student(folder, session.models.student)
    restore_optimizer(folder, session.models.student, session.optimizer)
    restore_random(folder)
    session.trajectories = ROUND.read(folder, sets.train)
    if session.trajectories is not None and session.reporter.world.is_main:
        ROUND.link(folder, round_folder(session.reporter.out_dir, state.round) / STATE_FOLDER)
    session.monitor.heldout = HELDOUT.read(folder, sets.evaluation) or []
    if state.step > 0:
        session.collector.samplers.student_changed()
    if session.models.teacher_update is not None:
        session.models.teacher_update.restore(folder)
        session.collector.samplers.teacher_changed()
    # A checkpoint that lacks what this run will soon have, trajectories or the last score, is written again.
    is_whole = session.trajectories is not None and not session.is_finished
    newest = checkpoint_folder(session.reporter.out_dir, state.step)
    is_result = state.round >= len(session.plan.rounds) and checkpoint == newest
    if is_whole or is_result:
        session.saver.saved_at = state.position


def _plan_eta(session: Session) -> None:
    config, state, plan, eta = session.config, session.state, session.plan, session.reporter.eta
    rounds_left = plan.rounds[state.round + (session.trajectories is not None) :]
    num_trajectories = sum(planned.num_trajectories for planned in rounds_left)
    eta.plan("rollout", num_trajectories)
    if config.refines:
        eta.plan("refining", num_trajectories)
    eta.plan("training", plan.num_steps - state.step)
    every = config.evaluation.every_steps
    due = {0, plan.num_steps, *(range(every, plan.num_steps, every) if every else ())}
    num_problems = len(session.monitor.problems.evaluation)
    eta.plan("evaluating", len(due - set(state.evaluated_at)) * num_problems * config.evaluation.k)
