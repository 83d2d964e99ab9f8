"""What the upload accepts, held against what the engine reads."""

from __future__ import annotations

from typing import Any

import pytest

from service.datasets import shapes
from service.datasets.shapes import inspect_row
from trd_engine.data.shapes import fields
from trd_engine.data.shapes.choose import to_problem
from trd_engine.data.shapes.fields import RowError
from trd_engine.types import Problem

USER = {"role": "user", "content": "1 + 1?"}
STDIO = {"inputs": ["1\n"], "outputs": ["2\n"]}

ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("math", {"problem": "x", "answer": "y"}),
    ("math", {"problem": "x", "answer": "y", "solution": "z"}),
    ("math", {"problem": "x", "answer": 4.5, "solution": ""}),
    ("math", {"question": "x", "final_answer": 3, "unique_id": 12}),
    ("math", {"Problem": "x", "Answer": "y", "Solution": "z", "ID": "a"}),
    ("math", {"problem": "x", "solution": "so \\boxed{4}"}),
    ("math", {"question": "x", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}),
    ("math", {"instruction": "x", "target": 0}),
    ("math", {"messages": [USER, {"role": "assistant", "content": "\\boxed{2}"}]}),
    ("exact", {"messages": [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "2"}]}),
    ("exact", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "answer": "2"}),
    ("choice", {"question": "x", "choices": ["a", "b"], "answer": 1}),
    ("choice", {"question": "x", "options": '["a", "b"]', "answer": "b", "rationale": "because"}),
    ("choice", {"question": "x", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}),
    ("code", {"problem": "x", "tests": {"kind": "stdio", **STDIO}}),
    ("code", {"question": "x", "input_output": STDIO, "solutions": ["print(2)"], "starter_code": ""}),
    ("code", {"question": "x", "input_output": '{"inputs": ["1"], "outputs": ["2"]}', "solutions": "[]"}),
    (
        "code",
        {"prompt": "def f():", "entry_point": "f", "test": "def check(f): ...", "canonical_solution": " return 1"},
    ),
    ("code", {"text": "x", "test_list": ["assert f(1) == 2"], "code": "def f(x): return x + 1", "task_id": 7}),
    ("code", {"prompt": "x", "test_list": ["assert f(1) == 2"]}),
    (
        "code",
        {
            "task_id": "HumanEval/0",
            "prompt": "def f(x):",
            "entry_point": "f",
            "canonical_solution": " return 1",
            "base_input": [[1]],
            "plus_input": [],
        },
    ),
    (
        "code",
        {
            "question_content": "x",
            "question_id": "abc",
            "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]',
        },
    ),
]


@pytest.mark.parametrize(("task", "row"), ACCEPTED)
def test_what_is_accepted_trains_and_has_the_solution_it_is_said_to_have(task: str, row: dict[str, Any]) -> None:
    findings = inspect_row(row)
    assert findings.problems == []
    problem = to_problem(row, 1, task, {})
    assert isinstance(problem, Problem)
    assert findings.has_solution == (problem.solution is not None)
    assert (findings.row_id or "1") == problem.id


REFUSED: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("math", {"answer": "y"}, "problem", "required; the row's fields: answer"),
    ("math", {"problem": "x", "solution": "no box"}, "answer", "required"),
    ("math", {"question": " ", "answer": "y"}, "question", "must not be empty"),
    ("math", {"question": "x", "Answer": {}}, "Answer", "Answer = {}: must be a string or a number, not an object"),
    ("math", {"messages": "hello"}, "messages", "list of objects"),
    ("math", {"messages": [USER, USER]}, "messages", "one user turn and one assistant turn"),
    ("math", {"messages": [{"role": "user", "content": 3}], "answer": "1"}, "messages", "must be text"),
    ("math", {"messages": [{"role": "user", "content": ""}], "answer": "1"}, "messages", "must not be empty"),
    ("math", {"messages": [USER]}, "answer", "the assistant says nothing"),
    ("choice", {"question": "x", "choices": ["a"], "answer": 0}, "choices", "2 to 26 options, not 1"),
    ("choice", {"question": "x", "choices": "a or b", "answer": 0}, "choices", "must be a list or an object"),
    ("choice", {"question": "x", "choices": ["a", "b"]}, "answer", "required"),
    (
        "choice",
        {"question": "x", "choices": {"text": ["a", "b"], "label": ["1"]}, "answer": "1"},
        "choices",
        "lists of the same length",
    ),
    ("code", {"problem": "x", "tests": []}, "tests", "must be an object, not a list"),
    ("code", {"problem": "x", "tests": {}}, "tests", "must not be empty"),
    ("code", {"question": "x", "input_output": "nonsense"}, "input_output", "must be an object, not a string"),
    ("code", {"text": "x", "test_list": []}, "test_list", "must not be empty"),
    ("code", {"test_list": ["assert 1"]}, "problem", "required"),
    ("code", {"prompt": "x", "entry_point": "f", "base_input": {"a": 1}}, "base_input", "must be a list"),
    ("code", {"public_test_cases": "[]", "question_id": "7"}, "problem", "required"),
]


@pytest.mark.parametrize(("task", "row", "field", "words"), REFUSED)
def test_what_is_refused_would_not_train(task: str, row: dict[str, Any], field: str | None, words: str) -> None:
    (problem,) = inspect_row(row).problems
    assert problem.field == field
    assert words in problem.message
    with pytest.raises(RowError):
        to_problem(row, 1, task, {})


def test_the_names_are_those_the_engine_knows() -> None:
    assert shapes.PROBLEM == fields.PROBLEM
    assert shapes.ANSWER == fields.ANSWER
    assert shapes.SOLUTION == fields.SOLUTION
    assert shapes.ID == fields.ID
