"""The problems of a run: those it trains on, those it is evaluated on, and those over its prompt budgets.

Nothing is dropped or cut silently: each such problem is counted and listed with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trd_data.prompts import PromptBuilder
from trd_engine.config import RunConfig
from trd_engine.data.problems import load_problems, split_holdout
from trd_engine.models.loading import require_context
from trd_engine.runtime.errors import DataError, NoTrainingDataError
from trd_engine.runtime.events import Reporter
from trd_engine.types import Problem

_MAX_LISTED = 100
"""Problems in one notice; more are counted."""


@dataclass(frozen=True)
class ProblemSets:
    """The problems for training and for evaluation; no problem is in both."""

    train: list[Problem]
    evaluation: list[Problem]
    evaluation_name: str
    fingerprint: str
    evaluation_fingerprint: str | None
    """None if they are held out from the training problems."""

    def scorable(self, *, privileged: bool) -> list[Problem]:
        """Return the evaluation problems that the teacher can score: a privileged one needs a reference solution."""
        return [problem for problem in self.evaluation if problem.solution or not privileged]


def load_problem_sets(
    config: RunConfig,
    student_prompts: PromptBuilder,
    teacher_prompts: PromptBuilder,
    reporter: Reporter,
    *,
    given: Iterable[Problem | Mapping[str, Any]] | None = None,
) -> ProblemSets:
    """Load, split, and drop what does not fit its prompt budget, and report what and why.

    `given` rows or problems replace those of `config.dataset`.

    Raises `DataError` if a reference solution is missing, and `NoTrainingDataError`.
    """
    loaded = load_problems(config.dataset, config.task, given=given)
    train, evaluation, name, evaluation_fingerprint = list(loaded.problems), [], "holdout", None
    if config.evaluation.dataset is not None:
        others = load_problems(config.evaluation.dataset, config.task)
        evaluation, name, evaluation_fingerprint = list(others.problems), "evaluation", others.fingerprint
    elif config.evaluation.holdout != 0:
        train, evaluation = split_holdout(train, config.evaluation.holdout, config.seed)
    if config.is_privileged:
        _require_solutions(train)
    fits = _BudgetCheck(config, student_prompts, teacher_prompts)
    train = fits.keep(train, reporter, "training")
    fits.report_cut_references(train, reporter)
    evaluation = fits.keep(evaluation, reporter, name)
    if not train:
        raise NoTrainingDataError(
            f"no problem is left to train on: of {len(loaded.problems)}, the rest was held out or over its prompt "
            "budget; raise sampling.max_prompt_tokens or lower evaluation.holdout"
        )
    sets = ProblemSets(train, evaluation, name, loaded.fingerprint, evaluation_fingerprint)
    _report_unscored(sets, config, reporter)
    return sets


def load_evaluation_problems(
    config: RunConfig,
    student_prompts: PromptBuilder,
    reporter: Reporter,
    *,
    given: Iterable[Problem | Mapping[str, Any]] | None = None,
) -> tuple[list[Problem], str]:
    """Return the problems that a run of this spec is evaluated on and whose prompts fit, and the set's name.

    `given` rows or problems take their place. Raises `DataError` if there is none.
    """
    if given is not None:
        problems, name = list(load_problems(None, config.task, given=given).problems), "evaluation"
    else:
        problems, name = _evaluation_problems(config)
    problems = _BudgetCheck(config, student_prompts, None).keep(problems, reporter, name)
    if not problems:
        raise DataError(
            f"no problem is left to evaluate on; name evaluation.dataset, or raise sampling.max_prompt_tokens = "
            f"{config.sampling.max_prompt_tokens}"
        )
    return problems, name


def _evaluation_problems(config: RunConfig) -> tuple[list[Problem], str]:
    if config.evaluation.dataset is not None:
        return list(load_problems(config.evaluation.dataset, config.task).problems), "evaluation"
    problems = list(load_problems(config.dataset, config.task).problems)
    return split_holdout(problems, config.evaluation.holdout, config.seed)[1], "holdout"


def _report_unscored(sets: ProblemSets, config: RunConfig, reporter: Reporter) -> None:
    num_problems = len(sets.evaluation)
    num_left_out = num_problems - len(sets.scorable(privileged=config.is_privileged))
    if num_left_out:
        reporter.notice(
            "info",
            "heldout_without_reference",
            f"{num_left_out} of {num_problems} {sets.evaluation_name} problems have no reference solution: they are "
            "evaluated, but the teacher, which reads one, does not score them",
            num_left_out=num_left_out,
        )


def _require_solutions(problems: list[Problem]) -> None:
    without = [problem.id for problem in problems if not problem.solution]
    if without:
        raise DataError(
            f"{len(without)} problems have no reference solution, first {without[:5]}; a student that teaches itself "
            "needs one in every row: add field 'solution', or name a teacher"
        )


class _BudgetCheck:
    """Finds the problems whose prompts fit their budgets, and reports the others."""

    def __init__(
        self, config: RunConfig, student_prompts: PromptBuilder, teacher_prompts: PromptBuilder | None
    ) -> None:
        """`teacher_prompts`: None if no teacher will read them."""
        self._config = config
        self._student_prompts = student_prompts
        self._teacher_prompts = teacher_prompts

    def keep(self, problems: list[Problem], reporter: Reporter, use: str) -> list[Problem]:
        reasons = {problem.id: self._reason(problem) for problem in problems}
        dropped = [(name, reason) for name, reason in reasons.items() if reason]
        if dropped:
            self._report_dropped(dropped, len(problems), reporter, use)
        return [problem for problem in problems if reasons[problem.id] is None]

    def _report_dropped(
        self, dropped: Sequence[tuple[str, str]], num_problems: int, reporter: Reporter, use: str
    ) -> None:
        """List all of them in a file of the run, and the first ones in the notice as well."""
        listed = [{"problem_id": name, "reason": reason} for name, reason in dropped]
        path = reporter.out_dir / f"dropped-{use}.jsonl"
        if reporter.world.is_main:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed), encoding="utf-8")
        reporter.notice(
            "warn",
            "problems_dropped",
            f"{len(dropped)} of {num_problems} {use} problems were dropped: their prompt alone is over its budget",
            remedy="raise sampling.max_prompt_tokens or refine.max_prompt_tokens, or leave these problems out",
            count=len(dropped),
            example=f"problem {dropped[0][0]}: {dropped[0][1]}",
            problems=listed[:_MAX_LISTED],
            num_dropped=len(dropped),
            file=path.name,
        )

    def report_cut_references(self, problems: Sequence[Problem], reporter: Reporter) -> None:
        """Report how many references lose their tail if the teacher sees only x and y*.

        Raises `ContextTooLongError` if a cut reference and the text to be scored do not fit the model. In the refine
        context, cuts are reported prompt by prompt, see `refine`.
        """
        config = self._config
        if not problems or not config.is_privileged or config.loss.teacher_context == "refine":
            return
        assert self._teacher_prompts is not None
        budget = config.refine.max_prompt_tokens
        built = {p.id: self._teacher_prompts.privileged(p, max_tokens=budget) for p in problems}
        self._require_room_for_references(max(len(prompt.token_ids) for prompt in built.values()))
        cut = {name: prompt.num_cut_solution_tokens for name, prompt in built.items() if prompt.num_cut_solution_tokens}
        if cut:
            reporter.notice(
                "warn",
                "references_cut",
                f"the references of {len(cut)} of {len(problems)} problems lose their tail in the teacher's prompt: "
                f"with them it is over refine.max_prompt_tokens = {budget}",
                remedy="raise refine.max_prompt_tokens",
                count=len(cut),
                example=f"problem {next(iter(cut))}",
                problems=[{"problem_id": n, "num_cut_tokens": k} for n, k in list(cut.items())[:_MAX_LISTED]],
                num_cut=len(cut),
            )

    def _require_room_for_references(self, longest: int) -> None:
        """Check the longest actual prompt: few references come near the budget, which would refuse too much."""
        require_context(
            "student (which teaches itself)",
            self._config.student,
            prompt_tokens=longest,
            new_tokens=self._config.max_target_tokens,
            fields="the longest prompt with its reference (refine.max_prompt_tokens bounds it) + max_new_tokens",
        )

    def _reason(self, problem: Problem) -> str | None:
        config = self._config
        num_tokens = len(self._student_prompts.solve(problem))
        if num_tokens > config.sampling.max_prompt_tokens:
            return f"{num_tokens} prompt tokens > sampling.max_prompt_tokens = {config.sampling.max_prompt_tokens}"
        if self._teacher_prompts is not None and (config.refines or config.is_privileged):
            smallest = self._teacher_prompts.smallest(problem, refine=config.refines, privileged=config.is_privileged)
            if smallest > config.refine.max_prompt_tokens:
                return f"{smallest} prompt tokens > refine.max_prompt_tokens = {config.refine.max_prompt_tokens}"
        return None
