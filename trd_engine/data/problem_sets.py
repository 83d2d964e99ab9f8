"""The problems of a run: those it trains on, those it is evaluated on, and those over its prompt budgets.

Nothing is dropped or cut silently: each such problem is counted and listed with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trd_data.prompts import PromptBuilder
from trd_engine.config import DataSource, EvaluationConfig
from trd_engine.data.problems import LoadedData, load_problems, split_holdout
from trd_engine.runtime.errors import DataError, NoTrainingDataError
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.math.task import LIMIT_SECONDS
from trd_engine.tasks.references import judge_references
from trd_engine.tasks.verifier_pool.pool import shared_pool
from trd_engine.types import Problem

MAX_LISTED = 100
"""Problems in one notice; more are counted."""
_JUDGING_SECONDS = 60.0
"""Time limit for judging the references of one source; plain numbers take no time."""


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


@dataclass(frozen=True)
class PromptBudgets:
    """Decides which problems' prompts fit, and reports the others."""

    student: PromptBuilder
    max_solve_tokens: int
    teacher: PromptBuilder | None = None
    """None if no teacher will read prompts."""
    max_refine_tokens: int = 0
    refines: bool = False
    is_privileged: bool = False
    """Whether the teacher's prompts contain the reference solution."""

    def keep(self, problems: list[Problem], reporter: Reporter, use: str) -> list[Problem]:
        """Return the problems that fit. All others are listed in a file of the run, the first ones in a notice."""
        reasons = {problem.id: self._reason(problem) for problem in problems}
        dropped = [{"problem_id": name, "reason": reason} for name, reason in reasons.items() if reason]
        if dropped:
            path = reporter.out_dir / f"dropped-{use}.jsonl"
            if reporter.world.is_main:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in dropped]
                path.write_text("".join(lines), encoding="utf-8")
            reporter.notice(
                "warn",
                "problems_dropped",
                f"{len(dropped)} of {len(problems)} {use} problems were dropped: their prompt alone is over its budget",
                remedy="raise sampling.max_prompt_tokens or refine.max_prompt_tokens, or leave these problems out",
                count=len(dropped),
                example=f"problem {dropped[0]['problem_id']}: {dropped[0]['reason']}",
                problems=dropped[:MAX_LISTED],
                num_dropped=len(dropped),
                file=path.name,
            )
        return [problem for problem in problems if reasons[problem.id] is None]

    def _reason(self, problem: Problem) -> str | None:
        num_tokens = len(self.student.solve(problem))
        if num_tokens > self.max_solve_tokens:
            return f"{num_tokens} prompt tokens > sampling.max_prompt_tokens = {self.max_solve_tokens}"
        if self.teacher is not None and (self.refines or self.is_privileged):
            smallest = self.teacher.smallest(problem, refine=self.refines, privileged=self.is_privileged)
            if smallest > self.max_refine_tokens:
                return f"{smallest} prompt tokens > refine.max_prompt_tokens = {self.max_refine_tokens}"
        return None


def load_problem_sets(
    source: DataSource | None,
    evaluated_on: EvaluationConfig,
    task: str,
    seed: int,
    budgets: PromptBudgets,
    reporter: Reporter,
    *,
    given: Iterable[Problem | Mapping[str, Any]] | None = None,
) -> ProblemSets:
    """Load, split, and drop what does not fit its prompt budget, and report what and why.

    `given` rows or problems replace those of `source`.

    Raises `DataError` if a reference solution is missing, and `NoTrainingDataError`.
    """
    loaded = load_problems(source, task, given=given)
    _report_notices(loaded, source, task, reporter)
    train, evaluation, name, evaluation_fingerprint = list(loaded.problems), [], "holdout", None
    if evaluated_on.dataset is not None:
        others = load_problems(evaluated_on.dataset, task)
        if evaluated_on.dataset != source:
            _report_notices(others, evaluated_on.dataset, task, reporter, "evaluation.dataset: ")
        evaluation, name, evaluation_fingerprint = list(others.problems), "evaluation", others.fingerprint
    elif evaluated_on.holdout != 0:
        train, evaluation = split_holdout(train, evaluated_on.holdout, seed)
    without = [problem.id for problem in train if not problem.solution] if budgets.is_privileged else []
    if without:
        raise DataError(
            f"{len(without)} problems have no reference solution, first {without[:5]}; a student that teaches itself "
            "needs one in every row: add field 'solution', or name a teacher"
        )
    train = budgets.keep(train, reporter, "training")
    evaluation = budgets.keep(evaluation, reporter, name)
    if not train:
        raise NoTrainingDataError(
            f"no problem is left to train on: all {len(loaded.problems)} were held out or over their prompt "
            "budget; raise sampling.max_prompt_tokens or lower evaluation.holdout"
        )
    sets = ProblemSets(train, evaluation, name, loaded.fingerprint, evaluation_fingerprint)
    num_left_out = len(evaluation) - len(sets.scorable(privileged=budgets.is_privileged))
    if num_left_out:
        reporter.notice(
            "info",
            "heldout_without_reference",
            f"{num_left_out} of {len(evaluation)} {name} problems have no reference solution: they are "
            "evaluated, but the teacher, which reads one, does not score them",
            num_left_out=num_left_out,
        )
    return sets


def _report_notices(
    loaded: LoadedData, source: DataSource | None, task: str, reporter: Reporter, where: str = ""
) -> None:
    """Report suspicious rows, and references that no answer could match."""
    notices = list(loaded.notices)
    is_new = source is not None and not source.references_judged
    if task == "math" and is_new and reporter.world.is_main:
        # The pool that will judge the answers, so that its processes are started once.
        pool = shared_pool("math", LIMIT_SECONDS)
        notices += judge_references(loaded.references, _JUDGING_SECONDS, pool).notices
    for notice in notices:
        reporter.report(replace(notice, message=where + notice.message))


def load_evaluation_problems(
    source: DataSource | None,
    evaluated_on: EvaluationConfig,
    task: str,
    seed: int,
    budgets: PromptBudgets,
    reporter: Reporter,
    *,
    given: Iterable[Problem | Mapping[str, Any]] | None = None,
) -> tuple[list[Problem], str]:
    """Return the problems that a run of this spec is evaluated on and whose prompts fit, and the set's name.

    `given` rows or problems take their place. Raises `DataError` if there is none.
    """
    name = "evaluation"
    if given is not None:
        problems = list(load_problems(None, task, given=given).problems)
    elif evaluated_on.dataset is not None:
        problems = list(load_problems(evaluated_on.dataset, task).problems)
    else:
        problems, name = list(load_problems(source, task).problems), "holdout"
        problems = split_holdout(problems, evaluated_on.holdout, seed)[1]
    problems = budgets.keep(problems, reporter, name)
    if not problems:
        raise DataError(
            f"no problem is left to evaluate on; name evaluation.dataset, or raise sampling.max_prompt_tokens = "
            f"{budgets.max_solve_tokens}"
        )
    return problems, name
