"""What is odd about rows is noticed with a count, an example and the tasks that it concerns; usual rows are not odd."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest

from trd_data.check import check_file
from trd_data.notices import Notice
from trd_data.readers import RowLimits
from trd_data.shapes.choose import TASKS

PASSAGE = "Alice has {n} apples, and Bob, who came later than she did, has seven more."


def notices(rows: list[dict[str, Any]], columns: dict[str, str] | None = None) -> list[Notice]:
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    report = check_file(io.BytesIO(content), RowLimits(), columns)
    assert report.errors == []
    return report.notices


def only(rows: list[dict[str, Any]], columns: dict[str, str] | None = None) -> Notice:
    (notice,) = notices(rows, columns)
    return notice


def rows(count: int = 4, **extra: Any) -> list[dict[str, Any]]:
    """Make different problems; {n} in a text of `extra` is the row's number."""
    filled = lambda value, n: value.replace("{n}", str(n)) if isinstance(value, str) else value  # noqa: E731
    return [
        {"question": f"How many apples, plus {n}?", "answer": str(n), **{k: filled(v, n) for k, v in extra.items()}}
        for n in range(count)
    ]


PARTS: dict[str, Any] = {
    "input": "{n} + 1",
    "context": PASSAGE,
    "Context": PASSAGE,
    "passage": "short",
    "background": PASSAGE,
    "image": {"bytes": "aGk=", "path": None},
    "image_1": "aGk=",
    "images": ["a.png"],
    "image_url": "https://example.com/{n}.png",
    "hint": "think of {n}",
    "hints": ["a", "b"],
    "starter_code": "def f{n}():",
    "premise": "All men are mortal, {n}.",
    "Body": PASSAGE,
    "table": [["a", 1]],
    "supporting_facts": [PASSAGE],
    "inputText": PASSAGE,
    "question_context": PASSAGE,
    "instruction": "Answer with a word, {n}.",
    "schema": "CREATE TABLE t{n}",
    "system": "You speak as number {n}.",
    "choices_text": "A) 1 B) 2 {n}",
    "zusatz": PASSAGE,
    "details": PASSAGE,
    "text": PASSAGE,
}


@pytest.mark.parametrize("name", PARTS)
def test_a_column_that_may_be_a_part_of_the_problem_is_named(name: str) -> None:
    notice = only(rows(4, **{name: PARTS[name]}))
    assert (notice.code, notice.count, notice.tasks) == ("unread_columns", 4, ("math", "exact"))
    assert name in notice.message
    assert notice.example.startswith(f"row 1: {name} = ")
    assert "map" in notice.remedy


NO_PARTS: dict[str, Any] = {
    "source": "a book of problems, the third edition, page {n}, left column",
    "level": "Level 5",
    "subject": "Algebra and number theory for the very first grade of all {n}",
    "url": "https://example.com/{n}",
    "problem_url": "https://example.com/{n}",
    "license": "You may copy this row {n} as often as you want to, if you say so.",
    "question_type": "a question of the type that is asked most often, {n}",
    "context_id": "{n}",
    "num_inputs": 3,
    "input_length": 17,
    "image_id": "x{n}",
    "has_image": "no",
    "original_question": "How many apples were there in the beginning, plus {n}, say?",
    "generated_solution": PASSAGE,
    "model_output": PASSAGE,
    "thinking_trajectories": [PASSAGE],
    "cot": PASSAGE,
    "explanation": PASSAGE,
    "metadata": {"a": PASSAGE},
    "extra_info": {"context": PASSAGE},
    "uuid": "{n}",
    "date": "2024-01-{n}",
    "domain": ["a"],
    "context": "",
    "input": None,
    "hint": "  ",
    "image": None,
    "images": [],
    "prompt": "How many apples, plus {n}? Please reason step by step.",
    "part": "How many apples",
    "remarks": PASSAGE,
    "group": "the same long text about the group in every single row",
    "code_name": "x",
}


@pytest.mark.parametrize("name", NO_PARTS)
def test_metadata_and_answers_are_no_part_of_the_problem(name: str) -> None:
    assert notices(rows(4, **{name: NO_PARTS[name]})) == []


USUAL: dict[str, list[dict[str, Any]]] = {
    "DeepScaleR": [{"problem": f"p{n}", "answer": n, "solution": f"so {n}"} for n in range(3)],
    "NuminaMath": [
        {
            "source": "olympiads",
            "problem": f"What is {n}?",
            "solution": f"\\boxed{{{n}}}",
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"\\boxed{{{n}}}"},
            ],
        }
        for n in range(3)
    ],
    "MATH": [{"problem": f"p{n}", "level": "1", "type": "Algebra", "solution": f"\\boxed{{{n}}}"} for n in range(3)],
    "MetaMath": [
        {"type": "x", "query": f"How is {n}?", "original_question": "How?", "response": "r", "answer": n}
        for n in range(3)
    ],
    "verl": [
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": f"p{n}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(n)},
            "extra_info": {"split": "train", "index": n, "question": f"the question {n}"},
        }
        for n in range(3)
    ],
    "Alpaca": [
        {"instruction": "Add.", "input": f"{n}", "output": f"#### {n}", "text": f"Below is an instruction. Add. {n}"}
        for n in range(3)
    ],
    "LiveCodeBench": [
        {
            "question_title": f"A long title of the problem that has the number {n}",
            "question_content": f"Add {n}.",
            "platform": "p",
            "question_id": f"{n}",
            "contest_id": "c",
            "contest_date": "2024",
            "starter_code": "",
            "difficulty": "easy",
            "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]',
            "private_test_cases": "",
            "metadata": "{}",
        }
        for n in range(3)
    ],
    "MBPP": [
        {
            "task_id": n,
            "text": f"Write {n}.",
            "code": "def f(): ...",
            "test_list": ["assert f"],
            "test_setup_code": "",
            "challenge_test_list": ["assert f() == 1"],
        }
        for n in range(3)
    ],
    "OlympiadBench": [
        {
            "id": n,
            "question": f"q{n}",
            "solution": [f"s{n}"],
            "final_answer": [str(n)],
            "context": None,
            "image_1": None,
        }
        for n in range(3)
    ],
}


@pytest.mark.parametrize("name", USUAL)
def test_rows_of_known_data_sets_are_not_odd(name: str) -> None:
    assert notices(USUAL[name]) == []


def test_a_mapped_column_is_read() -> None:
    given = rows(4, passage=PASSAGE)
    assert only(given).code == "unread_columns"
    assert notices(given, {"instruction": "question", "input": "passage"}) == []


def test_several_columns_are_one_notice() -> None:
    given = [*rows(3, context=PASSAGE, hint="h {n}"), *rows(0)]
    notice = only(given)
    assert "context, hint" in notice.message
    assert notice.count == 3


def test_a_row_of_many_columns_takes_time_in_proportion() -> None:
    """Each of them was searched for in the problem: a row of a megabyte took 5 s of a child."""
    columns = {f"input {i}": f"x{i}" for i in range(20_000)}
    started = time.process_time()
    assert only([{"problem": "ab " * 160_000, "answer": "1", **columns}]).code == "unread_columns"
    assert time.process_time() - started < 2


def test_choices_that_the_task_does_not_read() -> None:
    given = [{"question": f"{n} + 1?", "choices": ["1", "2", "3"], "answer": n, "subject": "x"} for n in range(3)]
    notice = only(given)
    assert (notice.code, notice.count, notice.tasks) == ("choices_unread", 3, ("math", "exact"))
    letters = [{"question": f"{n}?", "A": "red", "B": "green", "answer": "A"} for n in range(3)]
    assert only(letters).code == "choices_unread"
    listed = [{"question": f"{n}? (A) red (B) green", "options": ["red", "green"], "answer": "A"} for n in range(3)]
    assert notices(listed) == []


def test_equal_problems_with_different_answers() -> None:
    given = [{"problem": "Solve it.", "answer": str(n)} for n in (1, 2, 1, 3)] + rows(2)
    notice = only(given)
    assert (notice.code, notice.count, notice.tasks) == ("conflicting_answers", 2, ("math", "exact"))
    assert notice.example == "row 2 asks the same as row 1: Solve it."
    for other in ("1/3", "0.33", "3", "1e-400", "1/0", r"\frac{3}{10}", "9" * 50 + "/3"):
        assert only([{"problem": "Solve it.", "answer": answer} for answer in ("1/30", other)]).count == 1


SAME = (
    *(("1", "1"), ("1", " $1$."), ("Paris", "paris"), ("x + 1", "x+1"), ("1/2", "0.5"), (r"\dfrac12", r"\frac{1}{2}")),
    *((r"-\frac{3}{4}", "-.75"), ("1,000", "1e3"), (r"\boxed{2}", "2.0"), (r"\dfrac{x}{2}", r"\frac{x}{2}")),
)


@pytest.mark.parametrize("answers", SAME)
def test_equal_problems_with_the_same_answer_are_not_odd(answers: tuple[str, str]) -> None:
    assert notices([{"problem": "Solve it.", "answer": answer} for answer in answers]) == []


def test_options_make_problems_different() -> None:
    given = [{"question": "Which?", "options": [f"{n}", "b"], "answer": str(n)} for n in range(3)]
    found = {notice.code: notice for notice in notices(given)}
    assert found["conflicting_answers"].tasks == ("math", "exact")
    assert set(found) == {"conflicting_answers", "choices_unread"}


COMMANDS = (
    *(r"\frac{1}{2}", r"\beta", r"\text{cm}", r"\times 3", r"\theta", r"\tan(x)", r"\right)", r"\rho", r"\neq 0"),
    *(r"\nabla f", r"\boxed{3}", r"\begin{x}", r"\forall x", r"\alpha", r"\vec{a}", r"\tau", r"\to\infty"),
)


def halved(command: str) -> str:
    """Return a command with one backslash, as JSON and Python read it."""
    escapes = {"f": "\f", "b": "\b", "t": "\t", "r": "\r", "n": "\n", "a": "\a", "v": "\v"}
    return escapes[command[1]] + command[2:]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["problem", "answer", "solution"])
def test_a_command_of_latex_that_lost_its_backslash(command: str, name: str) -> None:
    row = {"problem": "p", "answer": "1", "solution": "s"}
    notice = only([row, {**row, "problem": "q", name: f"the value ${halved(command)}$"}])
    assert (notice.code, notice.count) == ("escaped_latex", 1)
    assert notice.example.startswith(f"row 2: {name} has ")
    assert notice.example.isprintable()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_latex_with_its_backslash_is_not_odd(command: str) -> None:
    assert notices([{"problem": f"what is ${command}$?", "answer": command, "solution": command}]) == []


@pytest.mark.parametrize(
    "text",
    [
        "a\nnew line\nneither\nequal\nnot\nnumber\nbut",
        "\ttabs\tand\tanother\tto do\ttop\ttable",
        "lines of\r\nWindows\r\nright\r\n",
        "old\rMac",
        "def f():\n\treturn 1\n\tother\n\ttan = 2",
    ],
)
def test_white_space_is_not_odd(text: str) -> None:
    assert notices([{"problem": text, "answer": "1"}]) == []


def test_each_task_is_told_how_many_rows_it_cannot_read() -> None:
    given = [
        {"question": "a", "choices": ["x", "y"], "answer": 0},
        {"question": "b", "answer": "2", "solution": "s"},
        {"problem": "c", "tests": {"kind": "stdio", "inputs": ["1"], "outputs": ["2"]}},
        {"problem": "d", "answer": "A"},
    ]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in given)
    tasks = check_file(io.BytesIO(content), RowLimits()).tasks
    assert {task: found.num_refused for task, found in tasks.items()} == {
        **{"math": 1, "exact": 1, "choice": 2, "code": 3, "reasoning_gym": 4}
    }
    assert list(tasks) == list(TASKS)
    first = {
        task: (found.first_error.row, found.first_error.field) for task, found in tasks.items() if found.first_error
    }
    assert first["math"] == (3, "answer")
    assert first["choice"] == (2, "answer")
    assert first["code"] == (1, "tests")
    assert tasks["math"].first_without_solution == 1
    assert tasks["code"].first_without_solution == 3


def test_a_notice_is_bounded_and_printable() -> None:
    given = [{"question": f"q{n}", "answer": n, "context": f"\0\x1b[31m\ud800{'x' * 10_000}{n}"} for n in range(3)]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in given)
    (notice,) = check_file(io.BytesIO(content), RowLimits()).notices
    assert len(notice.example) <= 200
    assert notice.example.isprintable()
    many = rows(3, **{f"context_{number}": PASSAGE for number in range(500)})
    assert len(only(many).message) < 1000
