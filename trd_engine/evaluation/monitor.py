"""Watches a run: its scores, its distance from the teacher on held-out problems, and whether the sampler is in step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from trd_engine.config import EvaluationConfig
from trd_engine.data.problem_sets import ProblemSets
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.distillation.scoring import mean_heldout_divergence
from trd_engine.distillation.sequences import Batcher
from trd_engine.evaluation.evaluate import evaluate_student
from trd_engine.evaluation.sampler_gap import NUM_PROBES, measure_sampler_gap
from trd_engine.rollouts.collect import CollectionRequest, Collector
from trd_engine.types import ScoreRow, Trajectory

MAX_HELDOUT_PROBLEMS = 32
"""Enough for a steady mean over their tokens, and scored in seconds."""


@dataclass
class Monitor:
    """Measures the student at a step, and reports what it finds."""

    config: EvaluationConfig
    seed: int
    problems: ProblemSets
    collector: Collector
    models: ModelPair
    batcher: Batcher
    is_privileged: bool
    """True if the teacher reads a reference solution, and can score only problems that have one."""
    batch_size: int
    """Trajectories of a training step, for the first estimate of its time."""
    heldout: list[Trajectory] = field(default_factory=list)
    """A fixed batch, sampled once from the step-0 student: a batch that followed the student would measure its newest
    rollouts instead of its progress."""

    def evaluate(self, step: int, round_index: int) -> ScoreRow:
        """Score the student on the evaluation problems, and measure its divergence on the held-out batch."""
        row = evaluate_student(
            self.problems.evaluation,
            self.collector,
            self.config,
            dataset=self.problems.evaluation_name,
            step=step,
            seed=self.seed,
        )
        self._score_heldout(step, round_index)
        return row

    def sample_heldout(self) -> None:
        """Sample the held-out batch, unless that is done."""
        scorable = self.problems.scorable(privileged=self.is_privileged)[:MAX_HELDOUT_PROBLEMS]
        if scorable and not self.heldout:
            self.heldout = self.collector.collect(CollectionRequest(scorable, 1, (self.seed, "heldout", 0)))

    def probe_sampler(self) -> float:
        """Return the mean gap, in nats, between sampler and trainer. Raises `SamplerDriftError`."""
        prompts = [self.collector.prompts.solve(problem) for problem in self.problems.train[:NUM_PROBES]]
        return measure_sampler_gap(self.collector.samplers, self.models, prompts, seed=self.seed)

    def _score_heldout(self, step: int, round_index: int) -> None:
        measurable = [(i, t) for i, t in enumerate(self.heldout) if t.is_measurable]
        if not measurable:
            return
        reporter, started_at = self.collector.reporter, time.monotonic()
        self.collector.samplers.sleep()  # the forward passes need the memory
        batches, filler = self.batcher.micro_batches(measurable)
        divergence = mean_heldout_divergence(self.models, batches, filler)
        seconds = (time.monotonic() - started_at) / len(measurable)
        reporter.metrics(step, round_index, {f"heldout_{self.models.heldout_metric}": divergence})
        # A backward pass costs about twice its forward; the teacher has none, which leaves some room.
        reporter.eta.assume("training", 3.0 * seconds * self.batch_size)
