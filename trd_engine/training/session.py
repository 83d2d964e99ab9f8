"""A run in progress: its position, and the stages that change it. `training.loop` calls them in order."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from trd_engine.config import RunConfig
from trd_engine.distillation.batching import PassTokens
from trd_engine.distillation.losses.divergence import Divergence, divergence_at
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.distillation.sequences import Batcher
from trd_engine.distillation.token_weights import problem_weights
from trd_engine.evaluation.diagnosis.report import make_report
from trd_engine.evaluation.diagnosis.stage import RoundDiagnosis, write_report
from trd_engine.evaluation.monitor import Monitor
from trd_engine.rollouts.collect import CollectionRequest, Collector
from trd_engine.rollouts.files import ROUND, DiagnosedTokens, round_folder, write_diagnosed
from trd_engine.rollouts.metrics import RolloutFacts, rollout_notices, round_metrics
from trd_engine.runtime.errors import NonFiniteError, PassTooLargeError
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.seeds import derive_seed
from trd_engine.training.checkpoints.checkpoint import STATE_FOLDER
from trd_engine.training.checkpoints.model_card import versions
from trd_engine.training.checkpoints.save import CheckpointSaver, Progress
from trd_engine.training.checkpoints.state import TrainingState, restore_torch_random, torch_random_state
from trd_engine.training.non_finite import save_evidence
from trd_engine.training.optim import learning_rate_at, set_learning_rate
from trd_engine.training.plan import RunPlan, batch_positions, evaluation_is_due, first_steps, kept_positions
from trd_engine.training.step import optimizer_step
from trd_engine.types import Trajectory

TRAJECTORIES_FILE = "trajectories.jsonl"
DIAGNOSIS_FILE = "diagnosis.json"


@dataclass
class Session:
    """The parts of a run and its position."""

    config: RunConfig
    reporter: Reporter
    models: ModelPair
    plan: RunPlan
    state: TrainingState
    collector: Collector
    batcher: Batcher
    monitor: Monitor
    diagnosis: RoundDiagnosis
    optimizer: torch.optim.Optimizer
    saver: CheckpointSaver
    trajectories: list[Trajectory] | None = None
    """Trajectories of the round in progress; None while they are still to be collected."""
    fitted: PassTokens = PassTokens(0, 0)  # noqa: RUF009 - immutable
    """The largest passes that this attempt has had room for."""
    is_closed: bool = False
    """True once nothing can be sampled or trained any more."""

    @property
    def is_finished(self) -> bool:
        """True once every planned step is taken."""
        return self.state.step >= self.plan.num_steps

    @property
    def is_round_end(self) -> bool:
        """True after the last step of the round in progress."""
        return self.state.round_step >= self.plan.rounds[self.state.round].num_steps

    @property
    def progress(self) -> Progress:
        """What a checkpoint holds besides weights and moments."""
        return Progress(self.state, self.trajectories, self.monitor.heldout, self.is_finished)

    def position(self) -> dict[str, int]:
        """Return the position of the run, in the fields of `Reporter.phase`."""
        return {
            "round_index": min(self.state.round, len(self.plan.rounds) - 1),
            "num_rounds": len(self.plan.rounds),
            "step": self.state.step,
            "num_steps": self.plan.num_steps,
        }

    def evaluate_if_due(self) -> None:
        """Evaluate once at the baseline, at the end and every `evaluation.every_steps`."""
        step, state = self.state.step, self.state
        if not self.monitor.problems.evaluation or step in state.evaluated_at:
            return
        self.monitor.sample_heldout()  # before the first step, even if the baseline is not evaluated
        if not evaluation_is_due(self.config.evaluation, step, self.plan.num_steps):
            return
        self.reporter.enter("evaluating")
        self.probe_sampler()
        state.scores.append(self.monitor.evaluate(step, state.round))
        state.evaluated_at.append(step)
        if not self.is_finished:
            self.reporter.enter("training" if self.trajectories is not None else "rollout")

    def request_round(self) -> CollectionRequest:
        """Check that the sampler answers with the trained weights, and return what the next round collects."""
        self.probe_sampler()
        problems = list(self.plan.rounds[self.state.round].problems)
        return CollectionRequest(
            problems, self.config.samples_per_prompt, (self.config.seed, "round", self.state.round)
        )

    def check_first_rollouts(self, share: Sequence[Trajectory]) -> None:
        """Report what looks wrong with the first round's rollouts; raise `StrictNoticesError` in a strict run that has
        a notice, before it costs more. Collective."""
        if self.state.round > 0:
            return
        facts = self.reporter.world.gather([RolloutFacts.of(trajectory) for trajectory in share])
        for notice in rollout_notices(facts, self.config.sampling.max_new_tokens):
            self.reporter.report(notice)
        if self.config.strict:
            self.reporter.require_no_warnings()

    def probe_sampler(self) -> None:
        """Measure and report the gap between sampler and trainer."""
        self.state.sampler_gap = self.monitor.probe_sampler()
        self.reporter.metrics(self.state.step, self.state.round, {"sampler_gap": self.state.sampler_gap})

    def write_round(self, trajectories: Sequence[Trajectory]) -> None:
        """Write the trajectories of the round once; its checkpoints link to these files."""
        state = self.state
        if not self.reporter.world.is_main:
            return
        round_steps = first_steps(trajectories, self.config, state.round, self.plan.rounds[state.round].num_steps)
        steps = {position: state.step + round_step + 1 for position, round_step in round_steps.items()}
        ROUND.write(self._round_file(STATE_FOLDER), trajectories, self.collector.prompts, steps=steps)

    def diagnose(self, trajectories: Sequence[Trajectory]) -> None:
        """Diagnose a sample of the round, and report the round; before its first step changes the student.

        A run that is resumed between the two repeats this, and reports the same values.
        """
        state = self.state
        if state.round_step > 0:
            return
        found = self._diagnose_sample(trajectories)
        path = self._round_file(TRAJECTORIES_FILE)
        if self.reporter.world.is_main:
            write_diagnosed(path, self._round_file(STATE_FOLDER) / ROUND.trajectories_name, found)
        name = path.relative_to(self.reporter.out_dir).as_posix()
        self.reporter.event("trajectories", path=name, round=state.round, num=len(trajectories))
        self.reporter.metrics(state.step, state.round, round_metrics(trajectories))

    def _diagnose_sample(self, trajectories: Sequence[Trajectory]) -> dict[int, DiagnosedTokens]:
        """Report what a sample of the round shows of prefix failure. Return its tokens, by position."""
        state = self.state
        sample = self.diagnosis.choose(trajectories, state.round)
        if not sample:
            return {}
        self.reporter.enter("diagnosing")
        self.collector.samplers.sleep()  # training is the next to need the memory
        examined = self.diagnosis.examine(sample)
        report = make_report(examined, token_clip=self.config.loss.token_clip, sampler_gap=state.sampler_gap)
        if self.reporter.world.is_main:
            write_report(self._round_file(DIAGNOSIS_FILE), report, round_index=state.round, step=state.step)
        self.reporter.event("diagnosis", round=state.round, step=state.step, report=asdict(report))
        self.reporter.metrics(state.step, state.round, report.metrics())
        return self.diagnosis.tokens(sample, examined)

    def train_step(self, trajectories: Sequence[Trajectory]) -> None:
        """Take one optimizer step on the round's next batch."""
        self.reporter.enter("training")
        self.collector.samplers.sleep()
        state, optim, step = self.state, self.config.optim, self.state.step + 1
        kept = kept_positions(trajectories, self.config.refine.keep)
        batch = batch_positions(len(kept), optim.batch_size, self.config.seed, state.round, state.round_step)
        weights = problem_weights(trajectories) if self.config.loss.token_weights.pass_rate else None
        numbered = [(kept[i], trajectories[kept[i]]) for i in batch]
        learning_rate = learning_rate_at(step, self.plan.num_steps, optim)
        set_learning_rate(self.optimizer, learning_rate)
        divergence = divergence_at(self.models.divergence, self.config.loss.reverse_after, step, self.plan.num_steps)
        models = replace(self.models, divergence=divergence)
        world = self.reporter.world
        if world.size > 1:  # dropout is seeded by step and rank: only the main process has a random state to save
            torch.manual_seed(derive_seed(self.config.seed, "dropout", self.state.step, world.rank))
        random_state = torch_random_state()
        metrics: dict[str, float] | None = None
        while metrics is None:
            micro_batches, filler = self.batcher.micro_batches(numbered, weights)
            try:
                metrics = optimizer_step(
                    models, micro_batches, self.optimizer, max_grad_norm=optim.max_grad_norm, filler=filler
                )
            except NonFiniteError as error:
                raise self._with_evidence(error, trajectories, divergence, learning_rate) from error
            except PassTooLargeError as error:
                self.batcher = self.batcher.with_smaller_passes(micro_batches, error, self.fitted)
                restore_torch_random(random_state)
                most = self.batcher.max_tokens
                message = (
                    f"{error}; passes have at most {most.student} tokens of the student and {most.teacher} of the "
                    "teacher now, with the same loss"
                )
                self.reporter.notice("warn", "passes_halved", message, pass_tokens=[most.student, most.teacher])
        self.fitted = self.fitted.grown_to(micro_batches)
        self.optimizer.zero_grad(set_to_none=True)  # the next stage may need the memory
        self.collector.samplers.student_changed()
        state.step += 1
        state.round_step += 1
        state.losses.append(metrics["loss"])
        if self.models.teacher_update is not None and self.models.teacher_update.after_step(state.step):
            self.collector.samplers.teacher_changed()
        self.reporter.metrics(state.step, state.round, {**metrics, "learning_rate": learning_rate})
        self.reporter.report_progress(state.step, self.plan.num_steps, "steps")

    def end_round(self) -> None:
        """Drop the round's trajectories: the next round's come from the new student."""
        if self.reporter.world.is_main:
            shutil.rmtree(self._round_file(STATE_FOLDER), ignore_errors=True)
        self.state.round += 1
        self.state.round_step = 0
        self.trajectories = None

    def close(self) -> None:
        """End the samplers and the verifier, and free the memory of weights and moments. Repeated calls do nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        self.collector.close()
        self.models.free_memory(self.optimizer)

    def _with_evidence(
        self, error: NonFiniteError, trajectories: Sequence[Trajectory], divergence: Divergence, learning_rate: float
    ) -> NonFiniteError:
        """Save the error's evidence, and return the error with the folder's name."""
        assert error.evidence is not None
        step, world, out_dir = self.state.step + 1, self.reporter.world, self.reporter.out_dir
        facts = {
            "round": self.state.round,
            "seed": self.config.seed,
            "learning_rate": learning_rate,
            "divergence": asdict(divergence),
            "compute_dtype": str(self.models.compute_dtype),
            "versions": versions(),
        }
        folder = save_evidence(
            out_dir, error.evidence, trajectories, self.collector.prompts, step=step, rank=world.rank, facts=facts
        )
        world.wait()  # the first process that fails ends the others
        return NonFiniteError(f"{error}; see {folder.relative_to(out_dir).as_posix()} in the run's folder")

    def _round_file(self, name: str) -> Path:
        return round_folder(self.reporter.out_dir, self.state.round) / name
