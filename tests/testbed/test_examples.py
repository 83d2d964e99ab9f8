"""What examples show: starts, native solutions and attempts in loops."""

from __future__ import annotations

import dataclasses
import random

from testbed import task
from testbed.examples import Example, build
from testbed.recipes import RECIPES, Kind, Recipe
from testbed.task import WAIT, Expression
from testbed.tokenizer import build_tokenizer

NUM_EXAMPLES = 200


def _examples(kind: Kind, recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return (problem, the rest of the context, what is trained on)."""
    rng, tokenizer = random.Random(0), build_tokenizer()

    def parts(problem: Expression, example: Example) -> tuple[str, str, str]:
        context = tokenizer.decode(example.token_ids[: example.num_context]).removeprefix("<user>" + problem.text)
        trained = tokenizer.decode(example.token_ids[example.num_context :]).removesuffix("<end>")
        return problem.text, context.replace("<assistant>", ""), trained

    problems = [task.draw_problem(rng, "train") for _ in range(NUM_EXAMPLES)]
    return [parts(problem, build(kind, problem, recipe, rng)) for problem in problems]


def test_the_native_share_of_solutions_is_values_alone() -> None:
    for name, share in (("tiny-teacher", 0.0), ("tiny-teacher-half-native", 0.5), ("tiny-teacher-native", 1.0)):
        solved = _examples("solve", RECIPES[name])
        native = [(problem, text) for problem, _, text in solved if task.style_of(text) == task.REFERENCE_STYLE]
        assert abs(len(native) / NUM_EXAMPLES - share) < 0.15 * (0 < share < 1) + 1e-9
        for problem, text in native:
            *values, box = text.split("|")
            lines = task.reference(problem).split("|")
            assert values == [line[:2] for line in lines[:-1]]
            assert box == lines[-1]
    refined = _examples("refine", RECIPES["tiny-teacher-native"])
    assert all(task.style_of(text) in task.STYLES for _, _, text in refined)


def test_a_right_start_goes_on_to_the_right_answer_in_its_style() -> None:
    for problem, start, rest in _examples("right_prefix", RECIPES["tiny-teacher-native"]):
        style = start[-1]
        assert style in task.STYLES
        assert (start + rest).replace(style, "|") == task.reference(problem)


def test_attempts_in_loops_start_again_up_to_the_limit_and_are_refined_without_a_loop() -> None:
    teacher = RECIPES["tiny-teacher-loops"]
    refined = _examples("refine", teacher)
    counts = [attempt.count(WAIT) for _, attempt, _ in refined]
    assert max(counts) == teacher.foreign_max_restarts
    assert not any(WAIT in text for _, _, text in refined)
    starts = _examples("prefix", teacher)
    assert {start.count(WAIT) for _, start, _ in starts} == set(range(teacher.foreign_max_restarts))
    plain = _examples("prefix", dataclasses.replace(teacher, foreign_max_restarts=1))
    assert not any(WAIT in start for _, start, _ in plain)
