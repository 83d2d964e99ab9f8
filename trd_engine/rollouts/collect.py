"""Collects trajectories in four stages: roll out (y_o), refine (y_r), verify both, and score by a served teacher.

Each process works on its own share of a request. The last stage joins the shares in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trd_data.prompts import PromptBuilder
from trd_engine.generation.samplers import Samplers
from trd_engine.rollouts.exchange import join_shares
from trd_engine.rollouts.refine import refine_share
from trd_engine.rollouts.verify import Verifier
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.seeds import derive_seed
from trd_engine.teachers.prompts import TeacherPrompts
from trd_engine.teachers.served import ServedTeacher
from trd_engine.types import UNVERIFIED, Completion, GenerationRequest, Problem, Trajectory, Verdict


@dataclass(frozen=True)
class CollectionRequest:
    """Which problems to collect trajectories of."""

    problems: Sequence[Problem]
    samples_per_prompt: int
    seed_parts: tuple[object, ...]
    """Names the run and the round: the same parts give the same trajectories."""

    @property
    def pairs(self) -> list[tuple[Problem, int]]:
        """The problem and the number of each sample, in the order of the trajectories."""
        return [(problem, sample) for problem in self.problems for sample in range(self.samples_per_prompt)]


@dataclass(frozen=True)
class Collector:
    """The parts that the stages need; the same in every round of a run."""

    samplers: Samplers
    prompts: PromptBuilder
    """The student's."""
    verifier: Verifier
    """Judges completions as soon as they are sampled."""
    reporter: Reporter
    teacher_prompts: TeacherPrompts | None = None
    """None: nothing is refined or scored, as in an evaluation."""
    refines: bool = False
    served_teacher: ServedTeacher | None = None
    """Scores the targets, if the teacher is a served one."""

    def collect(self, request: CollectionRequest) -> list[Trajectory]:
        """Return the trajectories of all stages, in the order of the request's problems. Collective."""
        return self.score(self.verify(self.refine(self.roll_out(request), request)), request)

    def roll_out(self, request: CollectionRequest) -> list[Trajectory]:
        """Sample the student's rollouts y_o of this process's share."""
        self.reporter.enter("rollout")
        return self.sample(replace(request, seed_parts=(*request.seed_parts, "rollout")))

    def sample(self, request: CollectionRequest) -> list[Trajectory]:
        """Sample like `roll_out`, but within the current phase and with exactly the seeds that `seed_parts` give."""
        pairs = request.pairs
        share = [pairs[i] for i in self.reporter.world.share(len(pairs))]
        self.samplers.to_student()

        def sample_share() -> list[Trajectory]:
            requests = [
                GenerationRequest(self.prompts.solve(problem), derive_seed(*request.seed_parts, problem.id, sample))
                for problem, sample in share
            ]
            completions = self.samplers.sample_student(
                requests,
                on_progress=self.reporter.generation_progress,
                on_completion=lambda number, completion: self._begin_verdict(share[number][0], completion),
            )
            return [
                Trajectory(problem, sample, request.prompt_token_ids, completion)
                for (problem, sample), request, completion in zip(share, requests, completions, strict=True)
            ]

        return self.reporter.run_independently(sample_share)

    def refine(self, share: Sequence[Trajectory], request: CollectionRequest) -> list[Trajectory]:
        """Have the teacher rewrite each rollout into y_r; in a mode that does not refine, return the share as it is."""
        if not self.refines:
            return list(share)
        assert self.teacher_prompts is not None
        self.reporter.enter("refining")
        seed_parts = (*request.seed_parts, "refine")
        return refine_share(
            share,
            self.samplers,
            self.teacher_prompts,
            self.reporter,
            seed_parts=seed_parts,
            on_refined=self._begin_verdict,
        )

    def verify(self, share: Sequence[Trajectory]) -> list[Trajectory]:
        """Return the share with all verdicts. Most were found while the completions after them were sampled."""

        def verify_share() -> list[Trajectory]:
            pending = [(t.problem, t.rollout.text) for t in share]
            pending += [(t.problem, t.refined.text) for t in share if t.refined and t.refined_verdict is UNVERIFIED]
            verdicts = iter(self.verifier.verdicts(pending, self.reporter))
            judged = [replace(t, rollout_verdict=next(verdicts)) for t in share]

            def refined_verdict(trajectory: Trajectory) -> Verdict | None:
                verdict = trajectory.refined_verdict
                return next(verdicts) if verdict is UNVERIFIED else verdict

            return [replace(t, refined_verdict=refined_verdict(t)) for t in judged]

        return self.reporter.run_independently(verify_share)

    def _begin_verdict(self, problem: Problem, completion: Completion) -> None:
        self.verifier.begin(problem, completion.text)

    def close(self) -> None:
        """Free the generators' memory, and end the verifier."""
        self.verifier.close()
        self.samplers.close()

    def score(self, share: Sequence[Trajectory], request: CollectionRequest) -> list[Trajectory]:
        """Score the targets by a served teacher, if there is one, and join the shares of all processes in order.

        A local teacher scores while it trains. Collective.
        """
        world, served = self.reporter.world, self.served_teacher
        if served is None:
            return join_shares(share, request.pairs, world)
        assert self.teacher_prompts is not None
        scored = served.score(share, self.teacher_prompts.builder, self.reporter)
        trajectories = join_shares(scored, request.pairs, world)
        served.report_unscored(trajectories, self.reporter)
        return trajectories
