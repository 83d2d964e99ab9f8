"""The service's preview of prompts is what the engine asks, token for token, without torch or transformers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from service.datasets.problem_text import problem_text
from service.models.prompt_renderer import PROMPT_KINDS, PromptRenderer
from tests.trd_engine import rows
from trd_engine.config import PromptsConfig
from trd_engine.models.loading import load_tokenizer
from trd_engine.tasks.prompt_builder import PromptBuilder, choose_templates
from trd_engine.tasks.registry import load_task
from trd_engine.tasks.templates import BY_TASK
from trd_engine.types import Problem

ROOT = Path(__file__).parents[2]
TINY = ROOT / "testbed" / "models" / "tiny-student"
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"problem": "1+1", "answer": 2, "solution": "1+1 is \\boxed{2}"},
    "GSM8K": {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4 of them\n#### 4"},
    "choice": {"question": "Which?", "choices": ["this", "that"], "answer": 1},
    "labelled choice": {
        "question": "Which?",
        "choices": {"text": ["this", "that"], "label": ["A", "B"]},
        "answer": "A",
    },
    "chat": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
            {"role": "assistant", "content": "\\boxed{2}"},
        ]
    },
}


def test_the_templates_that_the_service_knows_are_the_tasks() -> None:
    """`python -m trd_engine prompts > contract/task_prompts.json` writes them anew."""
    document = json.loads((ROOT / "contract" / "task_prompts.json").read_text(encoding="utf-8"))
    assert document == {name: asdict(templates) for name, templates in BY_TASK.items()}
    assert asdict(load_task("math").prompts) == document["math"]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_same_text_to_both(name: str, tmp_path: Path) -> None:
    task = "choice" if "choices" in ROWS[name] else "math"
    (engines,) = rows.load_rows(tmp_path, ROWS[name], task=task)
    ours = problem_text(ROWS[name])
    assert ours.is_exact
    assert (ours.problem, ours.solution) == (engines.problem, engines.solution)


def test_a_programming_problem_says_that_it_is_not_the_whole() -> None:
    assert not problem_text(rows.TACO_CALL).is_exact
    assert problem_text(rows.MBPP).problem == rows.MBPP["text"]


def assert_same(folder: Path, problem: Problem, max_tokens: int, task: str = "math") -> None:
    renderer = PromptRenderer(folder)
    templates = choose_templates(BY_TASK[task], str(folder), PromptsConfig())
    builder = PromptBuilder(load_tokenizer(str(folder)), templates)
    assert renderer.templates(task) == asdict(templates)
    expected = {
        "solve": builder.solve(problem),
        "privileged": builder.privileged(problem, max_tokens=max_tokens).token_ids,
        "refine": builder.refine(problem, "", privileged=False, max_tokens=max_tokens).token_ids,
        "privileged_refine": builder.refine(problem, "", privileged=True, max_tokens=max_tokens).token_ids,
    }
    texts = {"problem": problem.problem, "solution": problem.solution or "", "attempt": ""}
    for kind in PROMPT_KINDS:
        fitted = renderer.fitted(templates=asdict(templates), kind=kind, texts=texts, max_tokens=max_tokens)
        assert tuple(fitted.token_ids) == expected[kind], kind


@pytest.mark.parametrize("max_tokens", [1000, 40, 10])
def test_a_small_models_prompts_are_the_engines(max_tokens: int) -> None:
    assert_same(TINY, Problem("0", "29+2*9#8+2*9", "95", "31*9#8+2*9|79#8+2*9|\\boxed{95}"), max_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [4000, 150])
def test_a_real_models_prompts_are_the_engines(max_tokens: int) -> None:
    problem = Problem("0", "What is {x} in 3·x = ½?\n\n", "1/6", "Divide by 3: x = ⅙.\nSo \\boxed{1/6}. " * 20)
    for task in BY_TASK:
        assert_same(SMOLLM2, problem, max_tokens, task)
