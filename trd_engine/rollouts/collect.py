"""Collecting a round: the student's rollouts y_o, and the verifier's word on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trd_engine.generation.samplers import Samplers
from trd_engine.rollouts.verify import verify_all
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.seeds import derive_seed
from trd_engine.tasks.prompt_builder import PromptBuilder
from trd_engine.tasks.protocol import Task
from trd_engine.types import GenerationRequest, Problem, Trajectory


@dataclass(frozen=True)
class Collector:
    """What it takes to have prompts answered and the answers judged."""

    samplers: Samplers
    prompts: PromptBuilder
    """The student's, or the teacher's where it is the teacher that answers."""
    task: Task
    reporter: Reporter


def collect_rollouts(
    problems: Sequence[Problem], collector: Collector, *, samples_per_prompt: int, seed_parts: tuple[object, ...]
) -> list[Trajectory]:
    """`samples_per_prompt` verified rollouts of each problem, problem after problem. `seed_parts` name the
    run and the round: the same parts give the same rollouts."""
    samplers, reporter = collector.samplers, collector.reporter
    all_pairs = [(problem, sample) for problem in problems for sample in range(samples_per_prompt)]
    pairs = [all_pairs[i] for i in reporter.world.share(len(all_pairs))]
    samplers.to_student()

    def collect_mine() -> list[Trajectory]:
        requests = [
            GenerationRequest(collector.prompts.solve(problem), derive_seed(*seed_parts, problem.id, sample))
            for problem, sample in pairs
        ]
        completions = samplers.sample_student(requests, on_progress=reporter.generation_progress)
        answers = [(problem, c.text) for (problem, _), c in zip(pairs, completions, strict=True)]
        verdicts = verify_all(answers, collector.task, reporter)
        return [
            Trajectory(problem, sample, request.prompt_token_ids, completion, verdict)
            for (problem, sample), request, completion, verdict in zip(
                pairs, requests, completions, verdicts, strict=True
            )
        ]

    return reporter.world.gather(reporter.run_independently(collect_mine))
