"""Training examples: a task, a kind and a recipe become token ids and a loss boundary.

Owns the curriculum and the batches. Stateless: the batch of a step is a function of the
recipe, the seed and the step, which is what makes an interrupted training resume exactly.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from testbed import task
from testbed.recipes import Kind, Mixture, Recipe
from testbed.task import ErrorModel, Expression
from testbed.tokenizer import END_ID, PROMPTS, encode, encode_prompt, pieces
from trd_data.templates import fill

_FULL_SIZE_SHARE = 0.85
"""After the ramp, the share of problems of full size; shorter ones keep the steps sharp."""
_TEMPLATES = {"prefix": "solve", "right_prefix": "solve", "privileged_prefix": "privileged"}
"""Prompts of the kinds that are not named after theirs."""
_TRUNCATED_SHARE = 0.05
"""Share of attempts shown cut short, as rollouts at their token limit or too long ones are."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and completion; the loss is on what follows ``num_context`` tokens."""

    token_ids: list[int]
    num_context: int


def draw_foreign_errors(recipe: Recipe, rng: random.Random) -> ErrorModel:
    """Draw the error rates of another solver's attempt: from almost none to almost only errors."""
    return ErrorModel(
        gap_rate=rng.choice((0.0, 0.5, 1.0)),
        slip_rate=rng.choice((0.0, 0.1, 0.2, 0.5)),
        noise_rate=rng.choice((0.0, 0.05, 0.1)),
        wait_rate=rng.choice(recipe.foreign_wait_rates),
        max_restarts=recipe.foreign_max_restarts,
    )


def _shown(text: str, rng: random.Random) -> str:
    """Return the attempt for a prompt: sometimes truncated, with or without the notice."""
    if rng.random() >= _TRUNCATED_SHARE:
        return text
    tokens = pieces(text)
    notice = PROMPTS["truncation_notice"] if rng.random() < 0.5 else ""
    return "".join(tokens[: rng.randrange(1, len(tokens))]) + notice


def _draw_wrong_lines(problem: Expression, recipe: Recipe, rng: random.Random) -> list[str]:
    """Draw the lines of an attempt, up to an error or beyond it."""
    for number in itertools.count():
        # Some problems have nothing to slip on: after eight tries noise makes the error.
        errors = draw_foreign_errors(recipe, rng) if number < 8 else ErrorModel(noise_rate=0.5)
        wrong = task.work(problem, errors, rng)
        if wrong.first_wrong is not None:
            return list(wrong.lines[: rng.randrange(wrong.first_wrong + 1, len(wrong.lines))])
    raise AssertionError("counting does not end")


def _wrong_start(problem: Expression, recipe: Recipe, rng: random.Random) -> tuple[list[str], list[str]]:
    """Return the lines of a wrong start, and the following ones: further along the wrong path, or ``wait``.

    A restart has no errors; a continuation has the model's own errors, so that a student does not learn here what it
    should not know.
    """
    start: list[str] = []
    if recipe.foreign_max_restarts > 1:  # several wrong starts in one attempt, all but the last ended by ``wait``
        for _ in range(rng.randrange(recipe.foreign_max_restarts)):
            start += [*_draw_wrong_lines(problem, recipe, rng), task.WAIT]
    start += _draw_wrong_lines(problem, recipe, rng)
    if rng.random() < 0.5:
        return start, [task.WAIT, *task.solution(problem).lines]
    return start, list(task.work(Expression.parse(start[-1]), recipe.errors, rng).lines)


def _solved(problem: Expression, separator: str, recipe: Recipe, rng: random.Random) -> tuple[str, list[str]]:
    """Return the separator and the lines of the model's own work, in its native style or the one drawn."""
    made = task.attempt(problem, recipe.errors, rng)
    # No random draw without a native style: the batches of such a recipe do not depend on it.
    if recipe.native_share and rng.random() < recipe.native_share:
        return task.REFERENCE_STYLE, list(task.values_only(made).lines)
    return separator, list(made.lines)


def build(kind: Kind, problem: Expression, recipe: Recipe, rng: random.Random) -> Example:
    """Build one example of a kind. Without a reference or an attempt the model makes its usual errors."""
    separator = rng.choice(task.STYLES)
    start: list[str] = []
    lines = list(task.solution(problem).lines)
    texts = {"problem": problem.text}
    if kind in ("privileged", "privileged_prefix", "privileged_refine"):
        texts["solution"] = task.reference(problem.text)
    if kind in ("refine", "privileged_refine"):
        texts["attempt"] = _shown(task.attempt(problem, draw_foreign_errors(recipe, rng), rng).render(separator), rng)
    if kind in ("prefix", "privileged_prefix"):
        start, lines = _wrong_start(problem, recipe, rng)
    if kind == "right_prefix":
        cut = rng.randrange(1, len(lines))
        start, lines = lines[:cut], lines[cut:]
    if kind == "solve":
        separator, lines = _solved(problem, separator, recipe, rng)
    template = _TEMPLATES.get(kind, kind)
    context = encode_prompt(fill(PROMPTS[template], **texts))
    context += encode("".join(line + separator for line in start))
    return Example([*context, *encode(separator.join(lines)), END_ID], len(context))


def draw_batch(recipe: Recipe, seed: int, step: int) -> list[Example]:
    """Draw the examples of one step, about ``tokens_per_step`` tokens, from the training split."""
    # Seeding with a string hashes it: neighbouring steps get unrelated streams.
    rng = random.Random(f"{recipe.name}/{seed}/{step}")
    ramp = recipe.curriculum_share * recipe.steps
    progress = 1.0 if ramp == 0 else min(1.0, step / ramp)
    batch: list[Example] = []
    num_tokens = 0
    while num_tokens < recipe.tokens_per_step:
        num_operations = task.NUM_OPERATIONS
        if progress < 1.0 or rng.random() >= _FULL_SIZE_SHARE:
            num_operations = rng.randint(1, min(task.NUM_OPERATIONS, 2 + int(progress * task.NUM_OPERATIONS)))
        problem = task.draw_problem(rng, "train", num_operations)
        late, early = recipe.mixture, recipe.early_mixture
        total_late, total_early = sum(late.values()), sum(early.values())
        mixed: Mixture = {}
        for kind in sorted({*late, *early}):
            mixed[kind] = progress * late.get(kind, 0.0) / total_late
            mixed[kind] += (1 - progress) * early.get(kind, 0.0) / total_early
        example = build(rng.choices(list(mixed), list(mixed.values()))[0], problem, recipe, rng)
        batch.append(example)
        num_tokens += len(example.token_ids)
    return batch
