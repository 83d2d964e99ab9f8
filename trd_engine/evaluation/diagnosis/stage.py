"""The diagnosis of a round: a sample of its trajectories, scored and reported before the round's first step.

Finding (`RoundDiagnosis.examine`) and reporting (`report.make_report`) are separate: if a round's sample is divided
among processes, each examines its share, and what they found is gathered between the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from trd_data.plain_json import finite
from trd_engine.config import DiagnosisConfig
from trd_engine.distillation.batching import PassTokens
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.evaluation.diagnosis.alternatives import MAX_TRAJECTORIES, Alternatives, find_alternatives, largest
from trd_engine.evaluation.diagnosis.prefix_failure import DiagnosedRollout, TokenSteps
from trd_engine.evaluation.diagnosis.report import RoundReport
from trd_engine.evaluation.diagnosis.scoring import Figures, ScoredCompletion, choose_sample, score_completions
from trd_engine.evaluation.diagnosis.token_places import token_at, token_ends
from trd_engine.models.loading import context_of
from trd_engine.rollouts.files import DiagnosedTokens, whole_file
from trd_engine.tasks.protocol import StepwiseTask, Task
from trd_engine.tasks.steps import StepCheck, check_by_reference
from trd_engine.teachers.prompts import TeacherContext, TeacherPrompts
from trd_engine.types import Completion, Problem, TrainingSequence, Trajectory

KL_DECIMALS = 4
"""Decimals of a token's KL on disk: a ten-thousandth of a nat is below what anyone reads off a picture."""

Numbered = list[tuple[int, Trajectory]]
"""Trajectories with their positions in the round."""


@dataclass(frozen=True)
class RoundDiagnosis:
    """What it takes to diagnose a round; the same in every round of a run."""

    config: DiagnosisConfig
    models: ModelPair
    task: Task
    teacher_prompts: TeacherPrompts
    tokenizer: PreTrainedTokenizerBase
    seed: int
    max_tokens: PassTokens
    """Tokens of a micro-batch."""

    def choose(self, trajectories: Sequence[Trajectory], round_index: int) -> Numbered:
        """Choose the round's sample; none if the diagnosis is off, or if the teacher is served and returns too little.

        A rollout that does not fit the teacher's context after its vanilla prompt is left out: training may never ask
        for that, and a model need not be able to.
        """
        if self.models.teacher is None:
            return []
        size = self.config.num_trajectories
        chosen = choose_sample(len(trajectories), size, seed=self.seed, round_index=round_index)
        return [(i, trajectories[i]) for i in chosen if self._can_be_scored(trajectories[i])]

    def examine(self, sample: Numbered) -> list[DiagnosedRollout]:
        """Score the trajectories in every context that they have."""
        refined = [(i, t) for i, t in sample if t.refined is not None and t.refined.token_ids]
        rollouts = self._score(sample, "rollout", "vanilla", {i: _correction(t) for i, t in refined})
        in_refine = self._score(refined, "refined", "refine")
        in_vanilla = self._score(refined, "refined", "vanilla")
        return [
            DiagnosedRollout(
                position=i,
                rollout_correct=t.rollout_verdict.correct,
                refined_correct=t.refined_verdict.correct if t.refined_verdict else None,
                rollout=rollouts[i],
                refined=in_refine.get(i),
                refined_vanilla=in_vanilla.get(i),
                steps=self._steps(t),
                parts_at=t.parts_at_token,
            )
            for i, t in sample
        ]

    def _can_be_scored(self, trajectory: Trajectory) -> bool:
        assert self.models.teacher is not None
        limit = context_of(self.models.teacher.model)
        prompt = self.teacher_prompts.scoring(trajectory, "vanilla")
        num_tokens = len(trajectory.rollout.token_ids)
        return num_tokens > 0 and (limit is None or len(prompt) + num_tokens <= limit)

    def tokens(self, sample: Numbered, examined: Sequence[DiagnosedRollout]) -> dict[int, DiagnosedTokens]:
        """Return what was found token by token, by position in the round: of y_o in the vanilla context, of y_r in the
        refine context. Of several processes all call it together."""
        of_rollout = self._alternatives(sample, {d.position: d.rollout for d in examined}, "rollout", "vanilla")
        scored = {d.position: d.refined for d in examined if d.refined is not None}
        of_refined = self._alternatives(sample, scored, "refined", "refine")
        return {
            d.position: DiagnosedTokens(
                kl_rollout=_rounded(d.rollout.forward_kl_T),
                kl_refined=None if d.refined is None else _rounded(d.refined.forward_kl_T),
                detail={
                    "lengths": {"rollout": self._lengths(t.rollout), "refined": self._lengths(t.refined)},
                    "alternatives": {
                        "rollout": _documents(of_rollout.get(d.position)),
                        "refined": _documents(of_refined.get(d.position)),
                    },
                    "first_wrong_step": None if d.wrong_tokens is None else list(d.wrong_tokens),
                },
            )
            for (_, t), d in zip(sample, examined, strict=True)
        }

    def _alternatives(
        self,
        sample: Numbered,
        scored: Mapping[int, ScoredCompletion],
        text: Literal["rollout", "refined"],
        context: TeacherContext,
    ) -> dict[int, tuple[Alternatives, ...]]:
        places = {i: largest(scored[i].forward_kl_T) for i, _ in sample[:MAX_TRAJECTORIES] if i in scored}
        sequences = self._sequences([(i, t) for i, t in sample if i in places], text, context)
        return find_alternatives(self.models, self.tokenizer, sequences, places, max_tokens=self.max_tokens)

    def _lengths(self, completion: Completion | None) -> list[int] | None:
        ends = None if completion is None else token_ends(self.tokenizer, completion.token_ids, completion.text)
        return None if ends is None else [end - start for start, end in pairwise([0, *ends])]

    def _score(
        self,
        sample: Numbered,
        text: Literal["rollout", "refined"],
        context: TeacherContext,
        watched: Mapping[int, int] | None = None,
    ) -> dict[int, ScoredCompletion]:
        sequences = self._sequences(sample, text, context)
        return score_completions(self.models, sequences, watched=watched, max_tokens=self.max_tokens)

    def _sequences(
        self, sample: Numbered, text: Literal["rollout", "refined"], context: TeacherContext
    ) -> list[TrainingSequence]:
        sequences = []
        for position, trajectory in sample:
            completion = trajectory.rollout if text == "rollout" else trajectory.refined
            assert completion is not None
            prompt = self.teacher_prompts.scoring(trajectory, context)
            sequences.append(TrainingSequence(trajectory.prompt_token_ids, prompt, completion.token_ids, position))
        return sequences

    def _steps(self, trajectory: Trajectory) -> TokenSteps | None:
        rollout = trajectory.rollout
        check = self._check(trajectory.problem, rollout.text)
        ends = None if check is None else token_ends(self.tokenizer, rollout.token_ids, rollout.text)
        if check is None or ends is None:
            return None
        return TokenSteps(tuple(token_at(ends, start) for start in check.starts), check.first_wrong)

    def _check(self, problem: Problem, text: str) -> StepCheck | None:
        if self.config.steps == "reference":
            return check_by_reference(problem.solution, text) if problem.solution else None
        return self.task.check_steps(problem, text) if isinstance(self.task, StepwiseTask) else None


def write_report(path: Path, report: RoundReport, *, round_index: int, step: int) -> None:
    """Write the report as JSON, whole or not at all; a figure that is not finite becomes null."""
    document = finite({"round": round_index, "step": step, **asdict(report)})
    with whole_file(path) as file:
        file.write(json.dumps(document, allow_nan=False, indent=1).encode() + b"\n")


def _correction(trajectory: Trajectory) -> int:
    """Return the first token of y_r that differs from y_o; -1 if there is none."""
    place = trajectory.parts_at_token
    assert trajectory.refined is not None
    ids = trajectory.refined.token_ids
    return ids[place] if place is not None and place < len(ids) else -1


def _rounded(forward_kl_T: Figures) -> tuple[float | None, ...]:
    return tuple(round(float(x), KL_DECIMALS) if math.isfinite(x) else None for x in forward_kl_T)


def _documents(found: Sequence[Alternatives] | None) -> list[dict[str, Any]] | None:
    return None if found is None else [asdict(alternatives) for alternatives in found]
