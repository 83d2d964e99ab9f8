"""A row is accepted at an upload, where its task is not known yet, exactly if the task that its columns suggest reads
it."""

from __future__ import annotations

from typing import Any

import pytest

from trd_data.errors import RowError
from trd_data.problems import Problem
from trd_data.shapes.choose import read_for, readings, suggested_reading

USER = {"role": "user", "content": "1 + 1?"}
CALL = {"role": "assistant", "content": "Let me see.", "tool_calls": [{"function": {"name": "add"}}]}
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
    ("math", {"instruction": "Add.", "input": "1 + 1", "output": "It is \\boxed{2}"}),
    ("math", {"instruction": "Add.", "input": "1 + 1", "answer": 2}),
    ("exact", {"instruction": "Say hi.", "input": "", "output": "hi"}),
    ("math", {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "\\boxed{2}"}]}),
    ("exact", {"system": "Be brief.", "conversations": [{"from": "human", "value": "x"}], "answer": "y"}),
    ("math", {"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}, "data_source": "gsm8k"}),
    ("math", {"prompt": [USER], "completion": [{"role": "assistant", "content": "#### 2"}]}),
    ("exact", {"prompt": "The sky is", "completion": " blue."}),
    ("math", {"prompt": [USER], "answer": "2"}),
    ("math", {"prompt": "1 + 1?", "ground_truth": "2"}),
    ("choice", {"question": "x", "A": "red", "B": "green", "C": "blue", "answer": "C"}),
    ("choice", {"question": "x", "choices": ["0.00001", "1"], "answer": "1"}),
    ("math", {"question": "How fast?", "solution": "So \\boxed{3e8}", "type": "physics"}),
]


def to_problem(row: dict[str, Any], number: int, task: str | None, columns: dict[str, str]) -> Problem:
    """Return the problem in a row; `task`: None if it is not known yet, as at an upload."""
    if task is None:
        return suggested_reading(readings(row, number, columns)).required()
    return read_for(row, number, task, columns).required()


@pytest.mark.parametrize(("task", "row"), ACCEPTED)
def test_an_accepted_row_is_the_same_problem_to_its_task(task: str, row: dict[str, Any]) -> None:
    assert to_problem(row, 1, None, {}) == to_problem(row, 1, task, {})


REFUSED: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("math", {"problem": "x", "solution": r"so \boxed{\frac{1}{}"}, "answer", "solution ends with no closed \\boxed{}"),
    ("math", {"answer": "y"}, "problem", "required; the row's fields: answer; accepted names: problem, question"),
    ("math", {"problem": "x", "solution": "no box"}, "answer", "required"),
    ("math", {"question": " ", "answer": "y"}, "question", "must not be empty"),
    ("math", {"question": "x", "Answer": {}}, "Answer", "Answer = {}: must be a string or a number, not an object"),
    ("math", {"messages": "hello"}, "messages", "list of objects"),
    ("math", {"messages": [USER, USER]}, "messages", "one user turn and one assistant turn"),
    ("math", {"messages": [{"role": "user", "content": 3}], "answer": "1"}, "messages", "must be text"),
    ("math", {"messages": [{"role": "user", "content": ""}], "answer": "1"}, "messages", "must not be empty"),
    ("math", {"messages": [USER]}, "answer", "required; the assistant's turn is empty"),
    ("choice", {"question": "x", "choices": ["a"], "answer": 0}, "choices", "2 to 26 options, not 1"),
    ("choice", {"question": "x", "choices": "a or b", "answer": 0}, "choices", "is not valid JSON"),
    ("choice", {"question": "x", "choices": ["a", "b"]}, "answer", "required"),
    (
        "choice",
        {"question": "x", "choices": {"text": ["a", "b"], "label": ["1"]}, "answer": "1"},
        "choices",
        "lists of the same length",
    ),
    ("code", {"problem": "x", "tests": []}, "tests", "must be an object, not a list"),
    ("code", {"problem": "x", "tests": {}}, "tests", "must have a kind, one of stdio"),
    ("code", {"question": "x", "input_output": "nonsense"}, "input_output", "is not valid JSON"),
    ("code", {"text": "x", "test_list": []}, "test_list", "must not be empty"),
    ("code", {"test_list": ["assert 1"]}, "problem", "required"),
    ("code", {"prompt": "x", "entry_point": "f", "base_input": {"a": 1}}, "base_input", "must be a list"),
    ("code", {"public_test_cases": "[]", "question_id": "7"}, "problem", "required"),
    ("math", {"instruction": "x", "input": "y"}, "answer", "there is no output"),
    ("math", {"conversations": [{"from": "human", "value": "x"}]}, "answer", "required"),
    ("math", {"conversations": [{"from": "tool", "value": "x"}]}, "conversations", "one user turn"),
    ("exact", {"messages": [USER, CALL]}, "messages", "a turn calls a tool"),
    ("math", {"prompt": [USER], "reward_model": {"style": "model"}}, "reward_model", "ground_truth"),
    ("math", {"prompt": [USER], "reward_model": {"ground_truth": " "}}, "reward_model.ground_truth", "not be empty"),
    ("math", {"prompt": [USER], "completion": [USER]}, "completion", "the assistant's"),
]


@pytest.mark.parametrize(("task", "row", "field", "words"), REFUSED)
def test_its_task_refuses_a_refused_row_too(task: str, row: dict[str, Any], field: str | None, words: str) -> None:
    with pytest.raises(RowError) as refused:
        to_problem(row, 1, None, {})
    assert refused.value.field == field
    assert words in refused.value.message
    with pytest.raises(RowError):
        to_problem(row, 1, task, {})


MEANINGS: list[tuple[str, dict[str, Any], tuple[str, str, str | None]]] = [
    (
        "math",
        {"instruction": "Add.", "input": "1 + 1", "output": "So \\boxed{2}"},
        ("Add.\n\n1 + 1", "2", "So \\boxed{2}"),
    ),
    ("math", {"instruction": "Add.", "input": None, "answer": "2"}, ("Add.", "2", None)),
    ("exact", {"prompt": "The sky is", "completion": " blue. "}, ("The sky is", "blue.", " blue. ")),
    (
        "math",
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "#### 2"}],
        },
        ("Be brief.\n\n1 + 1?", "2", "#### 2"),
    ),
    (
        "math",
        {
            "prompt": [{"role": "system", "content": "Be brief."}, USER],
            "reward_model": {"style": "rule", "ground_truth": 0.00001},
            "extra_info": {"index": 7},
        },
        ("Be brief.\n\n1 + 1?", "0.00001", None),
    ),
    ("math", {"prompt": [USER], "reward_model": {"ground_truth": '["2"]'}}, ("1 + 1?", "2", None)),
    ("math", {"prompt": [USER], "completion": [{"role": "assistant", "content": "#### 2"}]}, ("1 + 1?", "2", "#### 2")),
    ("choice", {"question": "x", "A": "red", "B": 2.0, "answer": 1}, ("x\n\n(A) red\n(B) 2", "B", None)),
    ("choice", {"question": "x", "options": ["7", "8"], "answer": "1"}, ("x\n\n(A) 7\n(B) 8", "B", None)),
    ("math", {"messages": '[{"role": "user", "content": "x"}]', "answer": 5}, ("x", "5", None)),
    ("math", {"instruction": "not read", "question": "x", "input": "nor this", "answer": 5}, ("x", "5", None)),
]


@pytest.mark.parametrize(("task", "row", "meaning"), MEANINGS)
def test_what_a_row_means(task: str, row: dict[str, Any], meaning: tuple[str, str, str | None]) -> None:
    problem = to_problem(row, 1, task, {})
    assert (problem.problem, problem.answer, problem.solution) == meaning


def test_verls_rows_of_programs_bring_their_tests() -> None:
    truth = '{"inputs": ["1"], "outputs": ["2"]}'
    row = {"prompt": [USER], "reward_model": {"ground_truth": truth}}
    tests = to_problem(row, 1, "code", {}).extra["tests"]
    assert tests == {"kind": "stdio", "inputs": ["1"], "outputs": ["2"]}


NESTED = {"q": {"text": "1 + 1", "parts": ["a", "b"]}, "info": '{"truth": [5]}', "a.b": "dotted", "problem": "not this"}


@pytest.mark.parametrize(
    ("columns", "meaning"),
    [
        ({"problem": "q.text", "answer": "info.truth.0"}, ("1 + 1", "5")),
        ({"problem": "q.parts.1", "answer": "a.b"}, ("b", "dotted")),
        ({"instruction": "q.text", "input": "q.parts.0", "answer": "a.b"}, ("not this", "dotted")),
        ({"problem": "a.b", "answer": "problem"}, ("dotted", "not this")),
    ],
)
def test_columns_map_paths(columns: dict[str, str], meaning: tuple[str, str]) -> None:
    problem = to_problem(NESTED, 1, "math", columns)
    assert (problem.problem, problem.answer) == meaning


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gone", "answer: columns maps it to 'gone'; the row has 'q', 'info', 'a.b', 'problem'"),
        ("q.gone", "answer: columns maps it to 'q.gone'; what it is a part of has 'text', 'parts'"),
        ("q.parts.7", "answer: columns maps it to 'q.parts.7'; what it is a part of has a list"),
        ("q.text.x", "is not valid JSON"),
        ("info.truth.x", "has a list"),
    ],
)
def test_a_path_to_nothing_is_named(path: str, words: str) -> None:
    with pytest.raises(RowError) as refused:
        to_problem(NESTED, 1, "math", {"answer": path})
    assert refused.value.field == "answer"
    assert words in refused.value.message


OPEN = {"question": "x", "metadata": {"source_dataset": "graph_color"}, "answer": None}
OTHERS: list[tuple[str, dict[str, Any], str | None]] = [
    ("exact", {"messages": [USER, {"role": "assistant", "content": "no box"}]}, "math"),
    ("exact", {"question": "x", "options": ["2 m", "3 m"], "answer": "3"}, "choice"),
    ("exact", {"question": "x", "A": "red", "B": "green", "answer": "E"}, "choice"),
    ("exact", {"instruction": "x", "input": "y", "output": "no box"}, "math"),
    ("reasoning_gym", OPEN, "exact"),
    ("math", {"question": "x", "answer": "1 #### 2", "metadata": {"source_dataset": "gsm8k"}}, None),
]


@pytest.mark.parametrize(("task", "row", "refusing"), OTHERS)
def test_a_row_that_one_task_reads_is_accepted_though_another_refuses_it(
    task: str, row: dict[str, Any], refusing: str | None
) -> None:
    assert to_problem(row, 1, None, {}) == to_problem(row, 1, task, {})
    if refusing is not None:
        with pytest.raises(RowError):
            to_problem(row, 1, refusing, {})
