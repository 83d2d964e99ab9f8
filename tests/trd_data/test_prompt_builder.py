"""Prompts: templates, budgets, and what is cut first."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trd_data.chat_template import FolderTokenizer
from trd_data.errors import PromptError
from trd_data.problems import Problem
from trd_data.prompts import PromptBuilder
from trd_data.templates import EXACT, choose_templates

STUDENT = Path(__file__).parents[2] / "testbed" / "models" / "tiny-student"
PROBLEM = Problem("p", "12+3", "15", solution="15|\\boxed{15}")
TASK = EXACT


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    templates = choose_templates(TASK, str(STUDENT), {})
    return PromptBuilder(FolderTokenizer(STUDENT), templates)


def test_the_models_own_templates_come_before_the_tasks_and_the_specs_before_both(tmp_path: Path) -> None:
    own = json.loads((STUDENT / "trd_prompts.json").read_text(encoding="utf-8"))
    assert choose_templates(TASK, str(STUDENT), {}).solve == own["solve"]
    assert choose_templates(TASK, str(tmp_path), {}).solve == TASK.solve
    chosen = choose_templates(TASK, str(STUDENT), {"solve": "{problem}=", "refine": None})
    assert (chosen.solve, chosen.refine) == ("{problem}=", own["refine"])


def test_a_models_unknown_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trd_prompts.json").write_text('{"sovle": "{problem}"}', encoding="utf-8")
    with pytest.raises(PromptError, match="sovle"):
        choose_templates(TASK, str(tmp_path), {})


def test_the_attempt_is_cut_before_the_reference_and_the_problem_never(builder: PromptBuilder) -> None:
    attempt = "9" * 40
    whole = builder.refine(PROBLEM, attempt, privileged=True, max_tokens=1000)
    assert (whole.num_cut_attempt_tokens, whole.num_cut_solution_tokens) == (0, 0)
    cut = builder.refine(PROBLEM, attempt, privileged=True, max_tokens=len(whole.token_ids) - 10)
    assert cut.num_cut_attempt_tokens >= 10
    assert cut.num_cut_solution_tokens == 0
    text = builder.decode_prompt(cut.token_ids)
    assert "12+3" in text
    assert "15|\\boxed{15}" in text
    assert "9~" in text  # the notice stands where the tail was
    smallest = builder.smallest(PROBLEM, refine=True, privileged=True)
    tight = builder.refine(PROBLEM, attempt, privileged=True, max_tokens=smallest + 1)
    assert tight.num_cut_attempt_tokens == 40
    assert tight.num_cut_solution_tokens > 0
    assert len(tight.token_ids) == smallest + 1  # the notice of the attempt, of which this model's is one token


NOTICE = "R;A;R"
"""Five tokens of the small student's."""


def with_notice(notice: str) -> PromptBuilder:
    templates = choose_templates(TASK, str(STUDENT), {})
    return PromptBuilder(FolderTokenizer(STUDENT), replace(templates, truncation_notice=notice))


@settings(max_examples=150, deadline=None)
@given(
    num_problem=st.integers(1, 12),
    num_attempt=st.integers(0, 20),
    num_solution=st.integers(0, 20),
    budget=st.integers(1, 70),
    is_privileged=st.booleans(),
    notice=st.sampled_from(["~", NOTICE]),
)
def test_a_prompt_fits_or_cannot(
    num_problem: int, num_attempt: int, num_solution: int, budget: int, is_privileged: bool, notice: str
) -> None:
    builder = with_notice(notice)
    problem = Problem("p", "1" * num_problem, "15", solution="2" * num_solution)
    attempt = "3" * num_attempt
    whole = builder.refine(problem, attempt, privileged=is_privileged, max_tokens=10_000)
    built = builder.refine(problem, attempt, privileged=is_privileged, max_tokens=budget)
    # The templates add a constant: each part counts as many tokens as it has, and a cut one as its notice has at least.
    fixed = len(whole.token_ids) - num_attempt - (num_solution if is_privileged else 0)
    cut_to = len(notice)
    least_reference = min(num_solution, cut_to) if is_privileged else 0
    least = fixed + min(num_attempt, cut_to) + least_reference
    assert len(built.token_ids) <= len(whole.token_ids)
    assert (len(built.token_ids) <= budget) == (least <= budget)
    assert builder.smallest(problem, refine=True, privileged=is_privileged) == fixed + least_reference
    text = builder.decode_prompt(built.token_ids)
    assert "1" * num_problem in text
    assert (notice in text) == bool(built.num_cut_attempt_tokens or built.num_cut_solution_tokens)
    if built.num_cut_solution_tokens:  # only where all of the attempt that its notice is shorter than is gone
        assert built.num_cut_attempt_tokens == num_attempt or num_attempt <= cut_to
    if len(whole.token_ids) <= budget:
        assert built == whole


def test_what_is_shorter_than_its_notice_stays() -> None:
    builder = with_notice(NOTICE)
    short = replace(PROBLEM, solution="15")
    whole = builder.refine(short, "15", privileged=True, max_tokens=1000)
    one_over = builder.refine(short, "15", privileged=True, max_tokens=len(whole.token_ids) - 1)
    assert one_over == whole
    long = replace(PROBLEM, solution="7+8=15;" * 8)
    whole = builder.refine(long, "15", privileged=True, max_tokens=1000)
    one_over = builder.refine(long, "15", privileged=True, max_tokens=len(whole.token_ids) - 1)
    assert (one_over.num_cut_attempt_tokens, one_over.num_cut_solution_tokens) == (0, 1 + len(NOTICE))
    assert len(one_over.token_ids) == len(whole.token_ids) - 1


def test_braces_and_placeholders_inside_texts_stay_as_they_are(tmp_path: Path) -> None:
    shutil.copytree(STUDENT, tmp_path / "model")
    tokenizer = FolderTokenizer(tmp_path / "model")
    templates = choose_templates(TASK, str(tmp_path), {"solve": "{problem}", "refine": "{problem}A{attempt}"})
    builder = PromptBuilder(tokenizer, templates)
    prompt = builder.refine(PROBLEM, "\\boxed{15}", privileged=False, max_tokens=1000)
    assert "\\boxed{15}" in builder.decode_prompt(prompt.token_ids)
