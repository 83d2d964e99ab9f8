"""One run under way, and the stages that `train.run` walks through.

Owns the order in which state, files and events change within a stage; the loop itself is in `train`, and how the
parts come together in `opening`.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from trd_engine.config import RunConfig
from trd_engine.data.problem_sets import ProblemSets
from trd_engine.distillation.batching import MicroBatch, share_of, split_into_micro_batches
from trd_engine.distillation.losses.divergence import Divergence, divergence_at
from trd_engine.distillation.scoring import ScoringSetup
from trd_engine.distillation.sequences import training_sequence
from trd_engine.distillation.token_weights import problem_weights
from trd_engine.evaluation.diagnosis.stage import RoundDiagnosis, token_kl, write_report
from trd_engine.evaluation.evaluate import evaluate_student
from trd_engine.evaluation.heldout import MAX_HELDOUT_PROBLEMS, score_heldout
from trd_engine.evaluation.sampler_gap import NUM_PROBES, measure_sampler_gap
from trd_engine.generation.samplers import Samplers
from trd_engine.models.fsdp import gather_full_model
from trd_engine.rollouts.collect import Collector, collect_rollouts
from trd_engine.rollouts.files import HELDOUT, ROUND, TokenKl, write_trajectories
from trd_engine.rollouts.metrics import round_metrics
from trd_engine.rollouts.refine import refine_rollouts
from trd_engine.runtime.errors import NonFiniteError
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.seeds import derive_seed
from trd_engine.tasks.prompt_builder import PromptBuilder
from trd_engine.tasks.protocol import Task
from trd_engine.training.checkpoints.checkpoint import (
    STATE_FOLDER,
    ExportExtras,
    begin_checkpoint,
    checkpoint_draft,
    checkpoint_folder,
    commit_checkpoint,
    prune_checkpoints,
    write_weights,
)
from trd_engine.training.checkpoints.model_card import versions
from trd_engine.training.checkpoints.state import TrainingState, write_state
from trd_engine.training.model_setup import LoadedModels
from trd_engine.training.non_finite import save_evidence
from trd_engine.training.optim import learning_rate_at, set_learning_rate
from trd_engine.training.plan import RunPlan, batch_positions, evaluation_is_due, kept_positions
from trd_engine.training.step import optimizer_step
from trd_engine.types import Problem, Trajectory

TRAJECTORIES_FILE = "trajectories.jsonl"
DIAGNOSIS_FILE = "diagnosis.json"


@dataclass
class Session:
    """A run under way."""

    config: RunConfig
    out_dir: Path
    reporter: Reporter
    models: LoadedModels
    task: Task
    prompts: PromptBuilder
    teacher_prompts: PromptBuilder
    problems: ProblemSets
    plan: RunPlan
    samplers: Samplers
    setup: ScoringSetup
    diagnosis: RoundDiagnosis
    optimizer: torch.optim.Optimizer
    state: TrainingState
    prune: bool
    trajectories: list[Trajectory] | None = None
    """Of the round under way; None while they are still to be collected."""
    heldout: list[Trajectory] = field(default_factory=list)
    saved_at: tuple[int, int] = (-1, -1)
    """Position of the newest checkpoint."""

    # -- stages ------------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """Say that the run is in `phase` now, unless it is already."""
        if self.reporter.current_phase == phase:
            return
        self.reporter.phase(
            phase,
            round_index=min(self.state.round, len(self.plan.rounds) - 1),
            num_rounds=len(self.plan.rounds),
            step=self.state.step,
            num_steps=self.plan.num_steps,
        )

    @property
    def is_round_end(self) -> bool:
        """True after the last step of the round under way."""
        return self.state.round_step >= self.plan.rounds[self.state.round].num_steps

    def evaluate_if_due(self, step: int) -> None:
        """Evaluate at the baseline, at the end and every `evaluation.every_steps`; once at each."""
        wanted = self.config.evaluation
        if not self.problems.evaluation or step != self.state.step or step in self.state.evaluated_at:
            return
        self._sample_heldout()
        if not evaluation_is_due(wanted, step, self.plan.num_steps):
            return
        self.enter("evaluating")
        self._probe_sampler()
        row = evaluate_student(
            self.problems.evaluation,
            self._collector(self.prompts),
            wanted,
            dataset=self.problems.evaluation_name,
            step=step,
            seed=self.config.seed,
        )
        self._score_heldout()
        self.state.scores.append(row)
        self.state.evaluated_at.append(step)
        if not self.is_finished:
            self.enter("training" if self.trajectories is not None else "rollout")

    @property
    def is_finished(self) -> bool:
        """True once every planned step is taken."""
        return self.state.step >= self.plan.num_steps

    def collect_round(self) -> None:
        """The round's trajectories: the checkpoint's where it has them, else sampled, refined and verified now."""
        if self.trajectories is not None:
            return
        state, planned = self.state, self.plan.rounds[self.state.round]
        self._probe_sampler()
        self.trajectories = self._collect(list(planned.problems), "round", state.round, num_samples=None)

    def report_round(self) -> None:
        """Diagnose the trajectories, and tell of them; before the first step, which makes another student.

        A run that is resumed in between does it once more: what was told then is told again, with the same values.
        """
        state = self.state
        if state.round_step > 0:
            return
        assert self.trajectories is not None
        found = self._diagnose(self.trajectories)
        path = self._round_file(state.round, TRAJECTORIES_FILE)
        if self.reporter.world.is_main:
            write_trajectories(path, self.trajectories, self.prompts, token_kl=found)
        self.reporter.event(
            "trajectories",
            path=path.relative_to(self.out_dir).as_posix(),
            round=state.round,
            num=len(self.trajectories),
        )
        self.reporter.metrics(state.step, state.round, round_metrics(self.trajectories))

    def train_step(self) -> None:
        """One optimizer step on the next batch of the round."""
        assert self.trajectories is not None
        self.enter("training")
        self.samplers.sleep()
        state, optim = self.state, self.config.optim
        kept = kept_positions(self.trajectories, self.config.refine.keep)
        positions = [kept[i] for i in batch_positions(len(kept), self.config, state.round, state.round_step)]
        weights = problem_weights(self.trajectories) if self.config.loss.token_weights.pass_rate else None
        micro_batches, filler = self._micro_batches([(i, self.trajectories[i]) for i in positions], weights)
        learning_rate = learning_rate_at(state.step + 1, self.plan.num_steps, optim)
        set_learning_rate(self.optimizer, learning_rate)
        self._seed_dropout()
        setup = replace(self.setup, divergence=self._divergence(state.step + 1))
        try:
            metrics = optimizer_step(
                setup, micro_batches, self.optimizer, max_grad_norm=optim.max_grad_norm, filler=filler
            )
        except NonFiniteError as error:
            raise self._with_evidence(error, learning_rate) from error
        self.optimizer.zero_grad(set_to_none=True)  # what comes next may need the room: rollouts, an evaluation
        self.samplers.student_changed()
        state.step += 1
        state.round_step += 1
        if self.models.teacher_update is not None and self.models.teacher_update.after_step(state.step):
            self.samplers.teacher_changed()
        self.reporter.metrics(state.step, state.round, {**metrics, "learning_rate": learning_rate})
        self.reporter.report_progress(state.step, self.plan.num_steps, "steps")

    def _divergence(self, step: int) -> Divergence:
        return divergence_at(self.setup.divergence, self.config.loss.reverse_after, step, self.plan.num_steps)

    def _with_evidence(self, error: NonFiniteError, learning_rate: float) -> NonFiniteError:
        """The same error once its evidence is saved, and naming where."""
        assert error.evidence is not None
        assert self.trajectories is not None
        state, step = self.state, self.state.step + 1
        facts = {
            "round": state.round,
            "seed": self.config.seed,
            "learning_rate": learning_rate,
            "divergence": asdict(self._divergence(step)),
            "compute_dtype": str(self.setup.compute_dtype),
            "versions": versions(),
        }
        world = self.reporter.world
        folder = save_evidence(
            self.out_dir, error.evidence, self.trajectories, self.prompts, step=step, rank=world.rank, facts=facts
        )
        world.wait()  # the first process that fails ends the others
        return NonFiniteError(f"{error}; see {folder.relative_to(self.out_dir).as_posix()} in the run's folder")

    def end_round(self) -> None:
        """Forget the round's trajectories: the next ones are the new student's."""
        self.state.round += 1
        self.state.round_step = 0
        self.trajectories = None

    # -- saving ------------------------------------------------------------------------------------

    def save_if_due(self) -> None:
        """A checkpoint every `checkpoints.every_steps` steps, and one with each round's trajectories.

        To collect a round may take hours, and is never done twice. What is kept for that alone has no merged model.
        """
        step = self.state.step
        is_planned = step > 0 and step % self.config.checkpoints.every_steps == 0
        is_collected = self.state.round_step == 0
        if self.state.position != self.saved_at and (is_planned or is_collected) and not self.is_finished:
            self._save(merged=self.config.checkpoints.merged and is_planned)

    def save_for_resume(self) -> None:
        """What a stopped run goes on from, unless the newest checkpoint is just that, or nothing is done yet."""
        is_nothing_new = self.trajectories is None and self.state.step in (0, self.saved_at[0])
        if is_nothing_new or self.state.position == self.saved_at:
            return
        self._save(merged=False)

    def save_final(self) -> None:
        """The run's result."""
        if self.saved_at != self.state.position:
            self._save(merged=self.config.checkpoints.merged)

    def close(self) -> None:
        """Free the generators' memory."""
        self.samplers.close()

    def _save(self, *, merged: bool) -> None:
        state, world = self.state, self.reporter.world
        self.enter("saving")
        temporary = checkpoint_draft(self.out_dir, state.step)
        if world.is_main:
            begin_checkpoint(temporary)
        world.wait()
        try:
            formats = self._write_checkpoint(temporary, merged=merged)
            world.wait()
            if world.is_main:
                self._commit(temporary, formats)
        finally:  # committed, it has another name; half written, it would keep a full disk full
            if world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
        world.wait()  # one that left now, on a stop, would have torchrun end the others
        self.saved_at = state.position
        folder = checkpoint_folder(self.out_dir, state.step)
        self.reporter.event("checkpoint", step=state.step, path=folder.relative_to(self.out_dir).as_posix())
        if state.round_step > 0 and not self.is_finished:
            self.enter("training")

    def _write_checkpoint(self, temporary: Path, *, merged: bool) -> list[str]:
        """Every process its parts, and the main one all that is whole; returns the formats of the weights."""
        world, folder = self.reporter.world, temporary / STATE_FOLDER
        student = self.models.student if world.size == 1 else gather_full_model(self.models.student, world)
        extras = ExportExtras.of(self.config, self.state, self.plan.num_steps, self.models.tokenizer)
        formats = [] if student is None else write_weights(temporary, student, extras, merged=merged)
        write_state(folder, self.state, self.models.student, self.optimizer, world)
        if self.models.teacher_update is not None:
            self.models.teacher_update.write(folder, world)
        if world.is_main:
            if self.trajectories is not None:
                ROUND.write(folder, self.trajectories, self.prompts)
            if self.heldout:
                HELDOUT.write(folder, self.heldout, self.prompts)
        return formats

    def _commit(self, temporary: Path, formats: list[str]) -> None:
        state = self.state
        score = next((row for row in state.scores if row.step == state.step), None)
        commit_checkpoint(
            temporary,
            self.out_dir,
            state.step,
            formats=formats,
            metrics={"avg_at_k": score.avg_at_k, "pass_at_k": score.pass_at_k} if score else {},
            data_fingerprint=state.data_fingerprint,
            seed=self.config.seed,
            versions=versions(),
        )
        if self.prune:
            prune_checkpoints(self.out_dir, self.config.checkpoints.keep)

    # -- collecting and scoring --------------------------------------------------------------------

    def _collector(self, prompts: PromptBuilder) -> Collector:
        return Collector(self.samplers, prompts, self.task, self.reporter)

    def _collect(
        self, problems: list[Problem], purpose: str, number: int, *, num_samples: int | None
    ) -> list[Trajectory]:
        seed_parts = (self.config.seed, purpose, number)
        self.enter("rollout")
        trajectories = collect_rollouts(
            problems,
            self._collector(self.prompts),
            samples_per_prompt=num_samples or self.config.samples_per_prompt,
            seed_parts=(*seed_parts, "rollout"),
        )
        if self.config.refines:
            self.enter("refining")
            trajectories = refine_rollouts(
                trajectories,
                self._collector(self.teacher_prompts),
                self.config.refine,
                privileged=self.config.is_privileged,
                seed_parts=(*seed_parts, "refine"),
            )
        if self.models.served_teacher is not None:
            trajectories = self.models.served_teacher.score(trajectories, self.teacher_prompts, self.reporter)
        return trajectories

    def _diagnose(self, trajectories: list[Trajectory]) -> dict[int, TokenKl]:
        """Report what a sample of the round says of prefix failure; its KL token by token, by position."""
        state = self.state
        sample = self.diagnosis.choose(trajectories, state.round)
        if not sample:
            return {}
        self.enter("diagnosing")
        self.samplers.sleep()  # the next to ask for memory is the training
        examined = self.diagnosis.examine(sample)
        report = self.diagnosis.report(examined, sampler_gap=self.state.sampler_gap)
        if self.reporter.world.is_main:
            path = self._round_file(state.round, DIAGNOSIS_FILE)
            write_report(path, report, round_index=state.round, step=state.step)
        self.reporter.event("diagnosis", round=state.round, step=state.step, report=report.document())
        self.reporter.metrics(state.step, state.round, report.metrics())
        return token_kl(examined)

    def _sample_heldout(self) -> None:
        """The fixed held-out batch, once: step 0's student's, whenever the first evaluation is."""
        scorable = self.problems.scorable(privileged=self.config.is_privileged)
        if not self.heldout and scorable:
            self.heldout = self._collect(scorable[:MAX_HELDOUT_PROBLEMS], "heldout", 0, num_samples=1)

    def _score_heldout(self) -> None:
        """The student's distance from the teacher on the fixed held-out batch."""
        measurable = [(i, t) for i, t in enumerate(self.heldout) if t.is_measurable]
        if not measurable:
            return
        score = score_heldout(self.setup, *self._micro_batches(measurable))
        measured = {f"heldout_{self.setup.yardstick_name}": score.divergence}
        self.reporter.metrics(self.state.step, self.state.round, measured)
        # A backward pass costs about twice its forward; the teacher has none, which leaves some room.
        batch_size = min(self.config.optim.batch_size, self.plan.rounds[0].num_trajectories)
        self.reporter.eta.assume("training", 3.0 * score.seconds_per_trajectory * batch_size)

    def _micro_batches(
        self, numbered: list[tuple[int, Trajectory]], weights: list[float] | None = None
    ) -> tuple[list[MicroBatch], MicroBatch | None]:
        """This process's part of the batch, and what it computes in vain while the others have more.

        `weights` are by the trajectory's number; None: 1 each.
        """
        sequences = [
            training_sequence(t, i, self.config, self.teacher_prompts, weight=1.0 if weights is None else weights[i])
            for i, t in numbered
        ]
        max_tokens = self.models.pass_tokens(self.config)
        split = partial(split_into_micro_batches, max_tokens=max_tokens, device=self.models.device)
        world = self.reporter.world
        if world.size == 1:
            return split(sequences), None
        return split(share_of(sequences, world)), split(sequences[:1])[0]

    def _seed_dropout(self) -> None:
        """Where each process draws dropout of its own, by step and rank: nothing of it is to be saved."""
        world = self.reporter.world
        if world.size > 1:
            torch.manual_seed(derive_seed(self.config.seed, "dropout", self.state.step, world.rank))

    def _probe_sampler(self) -> None:
        prompts = [self.prompts.solve(problem) for problem in self.problems.train[:NUM_PROBES]]
        gap = measure_sampler_gap(self.samplers, self.setup, prompts, seed=self.config.seed)
        self.state.sampler_gap = gap
        self.reporter.metrics(self.state.step, self.state.round, {"sampler_gap": gap})

    def _round_file(self, round_index: int, name: str) -> Path:
        return self.out_dir / "rounds" / f"{round_index:04d}" / name
