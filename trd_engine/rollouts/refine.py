"""The refinement: the teacher rewrites each rollout y_o into y_r, before anything is trained on it.

Every rollout is refined, the right ones too: keeping only those that failed and were then mended is
reported to hurt (arXiv 2606.08432).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trd_engine.config import RefineConfig
from trd_engine.rollouts.collect import Collector
from trd_engine.rollouts.verify import verify_all
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.seeds import derive_seed
from trd_engine.tasks.prompt_builder import BuiltPrompt
from trd_engine.teachers.token_scores import UNSCORED_NOTICE
from trd_engine.types import Completion, Trajectory


def refine_rollouts(
    trajectories: Sequence[Trajectory],
    collector: Collector,
    config: RefineConfig,
    *,
    privileged: bool,
    seed_parts: tuple[object, ...],
) -> list[Trajectory]:
    """The trajectories with their refinement and its verdict, in their order; `collector` has the teacher's prompts."""
    samplers, prompts, reporter = collector.samplers, collector.prompts, collector.reporter
    all_built = [
        prompts.refine(t.problem, t.rollout.text, privileged=privileged, max_tokens=config.max_prompt_tokens)
        for t in trajectories
    ]
    _report_cuts(all_built, config.max_prompt_tokens, reporter)
    num_left_out = _report_left_out(all_built, config.max_prompt_tokens, reporter)
    mine = [(trajectories[i], all_built[i]) for i in reporter.world.share(len(trajectories))]
    samplers.to_teacher()

    def refine_mine() -> list[Trajectory]:
        fitting = [(t, b) for t, b in mine if len(b.token_ids) <= config.max_prompt_tokens]
        seeds = [derive_seed(*seed_parts, t.problem.id, t.sample) for t, _ in fitting]
        answers = samplers.refine([b for _, b in fitting], seeds, on_progress=reporter.generation_progress)
        pairs = [(t.problem, c.text) for (t, _), c in zip(fitting, answers, strict=True)]
        judged = iter(zip(answers, verify_all(pairs, collector.task, reporter), strict=True))
        left_out = (samplers.no_refinement(), None)
        found = [next(judged) if len(b.token_ids) <= config.max_prompt_tokens else left_out for _, b in mine]
        return [
            replace(
                t,
                refine_prompt_token_ids=completion.prompt_token_ids or b.token_ids,
                refined=completion,
                refined_verdict=verdict,
                notices=(*t.notices, *_prompt_notices(b, config.max_prompt_tokens), *_score_notices(completion)),
                scores=completion.scores,
            )
            for (t, b), (completion, verdict) in zip(mine, found, strict=True)
        ]

    refined = reporter.world.gather(reporter.run_independently(refine_mine))
    _report_empty(refined, num_left_out, reporter)
    return refined


def _prompt_notices(built: BuiltPrompt, max_tokens: int) -> tuple[str, ...]:
    notices = []
    if len(built.token_ids) > max_tokens:
        notices.append(f"not refined: {len(built.token_ids)} prompt tokens > refine.max_prompt_tokens = {max_tokens}")
    if built.num_cut_attempt_tokens:
        notices.append(f"refining prompt: the last {built.num_cut_attempt_tokens} tokens of the attempt were cut")
    if built.num_cut_solution_tokens:
        notices.append(f"refining prompt: the last {built.num_cut_solution_tokens} tokens of the reference were cut")
    return tuple(notices)


def _score_notices(completion: Completion) -> tuple[str, ...]:
    return () if completion.unscored_reason is None else (UNSCORED_NOTICE + completion.unscored_reason,)


def _report_left_out(built: Sequence[BuiltPrompt], max_tokens: int, reporter: Reporter) -> int:
    """How many prompts do not fit, however much of their attempt is cut."""
    num_too_long = sum(1 for b in built if len(b.token_ids) > max_tokens)
    if num_too_long:
        reporter.notice(
            "warn",
            "attempts_left_out",
            f"{num_too_long} of {len(built)} rollouts are not refined, and not trained on: their refining prompt is "
            f"over refine.max_prompt_tokens = {max_tokens} even with nothing left of them but the notice of the cut",
            num_left_out=num_too_long,
        )
    return num_too_long


def _report_empty(trajectories: Sequence[Trajectory], num_left_out: int, reporter: Reporter) -> None:
    """Those left out were not asked for."""
    num_empty = sum(1 for t in trajectories if not t.target.token_ids) - num_left_out
    if num_empty:
        reporter.notice(
            "warn",
            "refinements_empty",
            f"{num_empty} of {len(trajectories)} refinements hold no token, and are not trained on: the teacher's "
            "budget went into thoughts that it does not show, or it refused",
            num_empty=num_empty,
        )


def _report_cuts(built: Sequence[BuiltPrompt], max_tokens: int, reporter: Reporter) -> None:
    num_cut = sum(1 for b in built if b.num_cut_attempt_tokens or b.num_cut_solution_tokens)
    if num_cut:
        reporter.notice(
            "warn",
            "prompts_cut",
            f"{num_cut} of {len(built)} refining prompts were over refine.max_prompt_tokens = {max_tokens} and were "
            "cut: the attempt's tail first, then the reference's",
            num_cut=num_cut,
        )
