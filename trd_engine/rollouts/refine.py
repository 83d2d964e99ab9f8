"""The refinement: the teacher rewrites each rollout y_o into y_r before anything is trained on it.

Every rollout is refined, correct ones too: to keep only those that failed and were then fixed is reported to hurt
(arXiv 2606.08432).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from trd_data.prompts import BuiltPrompt
from trd_engine.generation.samplers import Samplers
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.seeds import derive_seed
from trd_engine.teachers.prompts import TeacherPrompts
from trd_engine.teachers.served import UNSCORED_NOTICE
from trd_engine.types import UNVERIFIED, Completion, Problem, Trajectory


def refine_share(
    share: Sequence[Trajectory],
    samplers: Samplers,
    prompts: TeacherPrompts,
    reporter: Reporter,
    *,
    seed_parts: tuple[object, ...],
    on_refined: Callable[[Problem, Completion], None],
) -> list[Trajectory]:
    """Return this process's trajectories with their unverified refinements, in order. Collective.

    `on_refined` is called with each refinement as soon as it is whole. A rollout whose prompt does not fit the budget,
    however much is cut, gets an empty refinement that is never judged.
    """
    built = [prompts.refine(trajectory) for trajectory in share]
    fits = [len(b.token_ids) <= prompts.max_tokens for b in built]
    num_too_long = _report_prompts(built, prompts.max_tokens, reporter)
    samplers.to_teacher()

    def refine_fitting() -> list[Trajectory]:
        asked = [(t, b) for t, b, fit in zip(share, built, fits, strict=True) if fit]
        seeds = [derive_seed(*seed_parts, t.problem.id, t.sample) for t, _ in asked]
        answers = iter(
            samplers.refine(
                [b for _, b in asked],
                seeds,
                on_progress=reporter.generation_progress,
                on_completion=lambda number, completion: on_refined(asked[number][0].problem, completion),
            )
        )
        return [
            _refined(t, b, next(answers) if fit else samplers.no_refinement(), prompts.max_tokens, is_left_out=not fit)
            for t, b, fit in zip(share, built, fits, strict=True)
        ]

    refined = reporter.run_independently(refine_fitting)
    _report_empty(refined, num_too_long, reporter)
    return refined


def _refined(
    trajectory: Trajectory, built: BuiltPrompt, completion: Completion, max_tokens: int, *, is_left_out: bool
) -> Trajectory:
    notices = list(trajectory.notices)
    if is_left_out:
        notices.append(f"not refined: {len(built.token_ids)} prompt tokens > refine.max_prompt_tokens = {max_tokens}")
    if built.num_cut_attempt_tokens:
        notices.append(f"refining prompt: the last {built.num_cut_attempt_tokens} tokens of the attempt were cut")
    if built.num_cut_solution_tokens:
        notices.append(f"refining prompt: the last {built.num_cut_solution_tokens} tokens of the reference were cut")
    if completion.unscored_reason is not None:
        notices.append(UNSCORED_NOTICE + completion.unscored_reason)
    return replace(
        trajectory,
        refine_prompt_token_ids=completion.prompt_token_ids or built.token_ids,
        refined=completion,
        refined_verdict=None if is_left_out else UNVERIFIED,
        notices=tuple(notices),
        scores=completion.scores,
    )


def _report_prompts(built: Sequence[BuiltPrompt], max_tokens: int, reporter: Reporter) -> int:
    """Report how many prompts were cut or left out, over all processes. Return the number left out."""
    counts = (
        len(built),
        sum(bool(b.num_cut_attempt_tokens or b.num_cut_solution_tokens) for b in built),
        sum(len(b.token_ids) > max_tokens for b in built),
    )
    total, num_cut, num_too_long = (int(reporter.world.sum(count)) for count in counts)
    if num_cut:
        reporter.notice(
            "warn",
            "prompts_cut",
            f"{num_cut} of {total} refining prompts were over refine.max_prompt_tokens = {max_tokens} and were cut: "
            "the attempt's tail first, then the reference's",
            remedy="raise refine.max_prompt_tokens, or lower sampling.max_new_tokens",
            count=num_cut,
            num_cut=num_cut,
        )
    if num_too_long:
        reporter.notice(
            "warn",
            "attempts_left_out",
            f"{num_too_long} of {total} rollouts are not refined, and not trained on: their refining prompt is over "
            f"refine.max_prompt_tokens = {max_tokens} even if only the notice of the cut is left of them",
            remedy="raise refine.max_prompt_tokens",
            count=num_too_long,
            num_left_out=num_too_long,
        )
    return num_too_long


def _report_empty(refined: Sequence[Trajectory], num_too_long: int, reporter: Reporter) -> None:
    """Report how many answers are empty, over all processes; those left out were not asked for."""
    total = int(reporter.world.sum(len(refined)))
    num_empty = int(reporter.world.sum(sum(not t.target.token_ids for t in refined))) - num_too_long
    if num_empty:
        reporter.notice(
            "warn",
            "refinements_empty",
            f"{num_empty} of {total} refinements hold no token, and are not trained on: the teacher refused, or spent "
            "its budget on thoughts that it does not show",
            remedy="raise refine.max_new_tokens, or look at the teacher's answers (trd trajectories)",
            count=num_empty,
            num_empty=num_empty,
        )
