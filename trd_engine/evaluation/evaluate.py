"""The student's scores on problems that training never sees: avg@k and pass@k with their intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from trd_engine.config import EvaluationConfig
from trd_engine.evaluation.intervals import pass_curve, summarise
from trd_engine.rollouts.collect import CollectionRequest, Collector
from trd_engine.rollouts.exchange import join_shares
from trd_engine.types import Problem, ScoreRow

_MAX_DATASETS = 100
"""More names are no data sets but something of each row's own."""


def evaluate_student(
    problems: Sequence[Problem], collector: Collector, config: EvaluationConfig, *, dataset: str, step: int, seed: int
) -> ScoreRow:
    """Sample each problem `k` times, report the scores and return them.

    ``evaluations/step-….jsonl`` has every answer, and an event has the first answer to each of the first
    `num_probe_samples` problems. The seeds do not depend on the step, so that the scores of two steps are paired.
    """
    k, reporter = config.k, collector.reporter
    request = CollectionRequest(problems, k, (seed, "evaluation"))
    trajectories = join_shares(collector.verify(collector.sample(request)), request.pairs, reporter.world)
    correct = [t.rollout_verdict.correct for t in trajectories]
    correct_PK = [correct[start : start + k] for start in range(0, len(correct), k)]
    scores = summarise(correct_PK)
    lengths = [len(t.rollout.token_ids) for t in trajectories]
    if reporter.world.is_main:
        path = reporter.out_dir / "evaluations" / f"step-{step:08d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "problem_id": t.problem.id,
                "sample": t.sample,
                "correct": t.rollout_verdict.correct,
                "num_tokens": len(t.rollout.token_ids),
                "text": t.rollout.text,
            }
            for t in trajectories
        ]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    reporter.event(
        "evaluation",
        step=step,
        dataset=dataset,
        **asdict(scores),
        detail={
            "pass_at": {str(j): share for j, share in pass_curve(correct_PK).items()},
            "by_dataset": _by_dataset([problem.benchmark for problem in problems], correct_PK),
            "mean_tokens": sum(lengths) / len(lengths),
            "truncated_share": sum(t.rollout.finish_reason != "stop" for t in trajectories) / len(trajectories),
        },
    )
    if config.num_probe_samples:
        probes = trajectories[: config.num_probe_samples * k : k]
        samples = [
            {
                "problem_id": t.problem.id,
                "prompt": collector.prompts.decode_prompt(t.prompt_token_ids),
                "completion": t.rollout.text,
                "correct": t.rollout_verdict.correct,
            }
            for t in probes
        ]
        reporter.event("probe_samples", step=step, samples=samples)
    return ScoreRow(step, dataset, **asdict(scores))


def _by_dataset(names_P: Sequence[str | None], correct_PK: Sequence[Sequence[bool]]) -> dict[str, dict[str, float]]:
    """Return the scores by the data set that rows name, as AIME24 and HMMT25 in one file; none for a single one."""
    correct_by_name: dict[str, list[Sequence[bool]]] = {}
    for name, correct_K in zip(names_P, correct_PK, strict=True):
        if name is not None:
            correct_by_name.setdefault(name, []).append(correct_K)
    if not 2 <= len(correct_by_name) <= _MAX_DATASETS:
        return {}
    return {name: asdict(summarise(correct)) for name, correct in sorted(correct_by_name.items())}
