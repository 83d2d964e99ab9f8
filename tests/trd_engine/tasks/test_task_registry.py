"""Every task by name, with templates that hold together and words for the diagnosis."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from trd_data.templates import CHOICE, CODE, EXACT, MATH, REASONING_GYM, PromptTemplates, fill
from trd_engine.runtime.errors import SpecError
from trd_engine.tasks.registry import TASK_NAMES, load_task
from trd_engine.tasks.steps import epistemic_onsets

FAMILIES = (MATH, EXACT, CHOICE, CODE, REASONING_GYM)
PLACEHOLDERS = {
    "solve": {"problem"},
    "privileged": {"problem", "solution"},
    "refine": {"problem", "attempt"},
    "privileged_refine": {"problem", "solution", "attempt"},
}


def test_tasks_load_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRD_ENABLE_CODE_TASKS", "1")
    assert [load_task(name).name for name in TASK_NAMES] == list(TASK_NAMES)
    assert {load_task(name).prompts for name in TASK_NAMES} == set(FAMILIES)


def test_unknown_task_names_the_ones_there_are() -> None:
    with pytest.raises(SpecError, match="unknown task 'poetry'; use one of math, exact"):
        load_task("poetry")


@pytest.mark.parametrize("templates", FAMILIES)
def test_each_template_shows_what_its_reader_may_see_and_no_more(templates: PromptTemplates) -> None:
    for name, allowed in PLACEHOLDERS.items():
        template = asdict(templates)[name]
        for placeholder in ("problem", "solution", "attempt"):
            assert template.count(f"{{{placeholder}}}") == (placeholder in allowed)
        filled = fill(template, problem="<P>", solution="<S>", attempt="<A>")
        assert {"problem": "<P>" in filled, "solution": "<S>" in filled, "attempt": "<A>" in filled} == {
            each: each in allowed for each in ("problem", "solution", "attempt")
        }


def test_texts_with_braces_are_put_in_as_they_are() -> None:
    filled = fill("{problem} / {attempt} \\boxed{}", problem="{attempt} {x}", attempt="{problem}")
    assert filled == "{attempt} {x} / {problem} \\boxed{}"


@pytest.mark.parametrize("task", TASK_NAMES)
def test_epistemic_onsets_are_distinct_words_and_know_the_small_models_wait(task: str) -> None:
    onsets = epistemic_onsets(task)
    assert 15 <= len(onsets) <= 20
    assert len(set(onsets)) == len(onsets)
    assert {"wait", "Wait", "However", "Actually"} <= set(onsets)
