"""Every shape of row from a file written here, what is refused and how, fingerprint and split."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trd_engine.rows import HUMANEVAL, MBPP, MBPP_PLUS, TACO_CALL, TACO_STDIO, load_rows, write_jsonl
from trd_engine.config import DataSource
from trd_engine.data.problems import fingerprint, load_problems, split_holdout
from trd_engine.runtime.errors import DataError
from trd_engine.tasks.registry import load_task
from trd_engine.types import Problem

SUMS = [{"problem": f"{n} + {n} = ?", "answer": str(2 * n), "solution": f"twice {n}"} for n in range(30)]


# Shapes of a problem and its answer


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(
            {"id": "a1", "problem": "1+1", "answer": "2", "solution": "so 2", "level": 3},
            Problem("a1", "1+1", "2", "so 2"),
            id="ours",
        ),
        pytest.param(
            {"problem": "1+1", "answer": "2", "solution": "thus $\\boxed{2}$."},
            Problem("1", "1+1", "2", "thus $\\boxed{2}$."),
            id="deepscaler",
        ),
        pytest.param(
            {"question": "How many?", "answer": "3*4=<<3*4=12>>12\n#### 1,200"},
            Problem("1", "How many?", "1,200", "3*4=12\n\\boxed{1,200}"),
            id="gsm8k",
        ),
        pytest.param(
            {"ID": "2024-I-1", "Problem": "Find it.", "Solution": "long", "Answer": 204.0},
            Problem("2024-I-1", "Find it.", "204", "long"),
            id="aime",
        ),
        pytest.param(
            {"problem_idx": 7, "problem": "Find it.", "answer": "\\frac{1}{2}", "problem_type": ["Algebra"]},
            Problem("7", "Find it.", "\\frac{1}{2}", None),
            id="hmmt",
        ),
        pytest.param(
            {"unique_id": "test/a/1.json", "problem": "p", "solution": "s", "answer": "x", "subject": "Algebra"},
            Problem("test/a/1.json", "p", "x", "s"),
            id="math-500",
        ),
        pytest.param(
            {"problem": "p", "solution": "first \\boxed{1}, then \\boxed{\\frac{1}{2}}", "type": "Algebra"},
            Problem("1", "p", "\\frac{1}{2}", "first \\boxed{1}, then \\boxed{\\frac{1}{2}}"),
            id="answer in the solution's last box",
        ),
        pytest.param(
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
                    {"role": "assistant", "content": "It is \\boxed{2}."},
                ]
            },
            Problem("1", "Be brief.\n\n1+1?", "2", "It is \\boxed{2}."),
            id="chat",
        ),
    ],
)
def test_known_shapes_need_no_mapping(row: dict[str, Any], expected: Problem, tmp_path: Path) -> None:
    assert load_rows(tmp_path, row) == [expected]


def test_a_gap_in_a_column_of_numbers_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "a", "answer": 1.0}\n{"problem": "b", "answer": NaN}\n', encoding="utf-8")
    with pytest.raises(DataError, match="row 2: not valid JSON: NaN is not a JSON value"):
        load_problems(DataSource(path=str(path)), "math")


def test_headings_are_no_answers(tmp_path: Path) -> None:
    solution = "#### Step 1\nAdd.\n#### Step 2\nSo it is \\boxed{4}."
    assert load_rows(tmp_path, {"problem": "2+2?", "solution": solution})[0].answer == "4"
    (problem,) = load_rows(tmp_path, {"problem": "2+2?", "answer": solution})
    assert load_task("math").verify(problem, "\\boxed{4}").correct
    assert problem.solution is None


@pytest.mark.parametrize("field", ["id", "problem", "answer", "solution"])
def test_half_a_character_is_named(field: str, tmp_path: Path) -> None:
    row = {"id": "a", "problem": "p", "answer": "1", "solution": "s"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**row, field: "x\ud83d"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"row 1: {field}: has \\ud83d at character 2, half a surrogate"):
        load_problems(DataSource(path=str(path)), "math")


def test_chat_row_of_task_exact_is_answered_by_the_whole_turn(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "hi\n"}]
    assert load_rows(tmp_path, {"messages": turns}, task="exact")[0].answer == "hi"
    with pytest.raises(DataError, match=r"row 1: answer: .* required; the assistant's turn has no \\boxed"):
        load_rows(tmp_path, {"messages": turns}, task="math")


def test_chat_row_of_many_turns_is_refused(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(DataError, match="one user turn and one assistant turn"):
        load_rows(tmp_path, {"messages": turns})


@pytest.mark.parametrize(
    ("row", "letter"),
    [
        ({"question": "q", "choices": ["red", "green", "blue"], "answer": 1}, "B"),
        ({"question": "q", "choices": {"text": ["red", "green"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
        ({"question": "q", "options": {"A": "red", "B": "green"}, "answer": "A"}, "A"),
        ({"question": "q", "options": ["red", "green"], "answer": "green"}, "B"),
        ({"question": "q", "choices": None, "options": ["red", "green"], "answer": 0}, "A"),
        ({"question": "q", "choices": {"text": ["red", "green"], "label": ["1", "2"]}, "answer": 1}, "A"),
        ({"question": "q", "options": {"1": "red", "2": "green"}, "answer": 2}, "B"),
    ],
)
def test_choices_are_listed_and_the_answer_is_a_letter(row: dict[str, Any], letter: str, tmp_path: Path) -> None:
    problem = load_rows(tmp_path, row, task="choice")[0]
    assert problem.problem.startswith("q\n\n(A) red\n(B) green")
    assert problem.answer == letter
    assert load_task("choice").verify(problem, f"So it is \\boxed{{{letter}}}.").correct


def test_choice_answer_that_is_no_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='row 1: answer = "D": names none of the options'):
        load_rows(tmp_path, {"question": "q", "choices": ["red", "green"], "answer": "D"}, task="choice")


def test_choices_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    row = {"question": "q", "choices": {"text": ["red", "green"], "label": ["1"]}, "answer": "1"}
    with pytest.raises(DataError, match="row 1: choices: label and text must be lists of the same length"):
        load_rows(tmp_path, row, task="choice")


@pytest.mark.parametrize("answer", ["b", "B", "B. 4", "(B) 4", "**B**", "\\boxed{B}", "The answer is B."])
def test_an_answer_whose_options_stand_in_the_problem_becomes_a_letter(answer: str, tmp_path: Path) -> None:
    (problem,) = load_rows(tmp_path, {"problem": "2+2? (A) 3 (B) 4", "answer": answer}, task="choice")
    assert problem.answer == "B"
    assert load_task("choice").verify(problem, "\\boxed{B}").correct


def test_an_answer_that_names_no_letter_is_refused(tmp_path: Path) -> None:
    row = {"problem": "2+2? (A) 3 (B) 4"}
    with pytest.raises(DataError, match=r"row 1: answer = \"4\": names no option; write the right option's letter"):
        load_rows(tmp_path, {**row, "answer": 4}, {**row, "answer": "a dog"}, task="choice")


# Shapes of a programming problem


def test_taco_row_keeps_its_tests_and_shows_its_starter_code(tmp_path: Path) -> None:
    stdio, call = load_rows(tmp_path, TACO_STDIO, TACO_CALL, task="code")
    assert stdio.extra["tests"] == {"kind": "stdio", "inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7"]}
    assert stdio.solution == "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    assert call.extra["tests"]["inputs"] == [[1, 2], [3, 4]]
    assert "def add(self, a, b):" in call.problem


def test_humaneval_and_mbpp_rows(tmp_path: Path) -> None:
    humaneval, mbpp, plus = load_rows(tmp_path, HUMANEVAL, MBPP, {**MBPP_PLUS, "task_id": 12}, task="code")
    assert humaneval.id == "HumanEval/0"
    assert humaneval.extra["tests"]["entry_point"] == "add"
    assert mbpp.extra["tests"]["asserts"] == MBPP["test_list"]
    assert "assert add(1, 2) == 3" in mbpp.problem
    assert "add(0, 0)" not in mbpp.problem
    assert plus.extra["tests"] == {"kind": "assert", "setup": "import math\n", "asserts": [MBPP_PLUS["test"]]}


def test_rows_bring_tests_of_their_own_form(tmp_path: Path) -> None:
    tests = {"kind": "call", "entry_point": "f", "inputs": [[1]], "outputs": [2]}
    assert load_rows(tmp_path, {"problem": "p", "tests": tests}, task="code")[0].extra["tests"] == tests


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "p"}, "tests: this field is required; task code needs"),
        ({"problem": "p", "tests": {"kind": "magic"}}, "must have a kind, one of stdio, call, assert, check"),
        ({"problem": "p", "tests": {"kind": "call", "inputs": [1], "outputs": [1]}}, "needs 'entry_point', a string"),
        ({"problem": "p", "tests": {"kind": "stdio", "inputs": [], "outputs": []}}, "as many outputs as inputs"),
        ({**TACO_STDIO, "input_output": "{"}, "input_output = .*: is not valid JSON"),
        ({**TACO_STDIO, "input_output": {"inputs": ["1"], "outputs": []}}, "as many outputs as inputs"),
        ({**MBPP, "test_list": []}, "test_list = .*: must not be empty"),
    ],
)
def test_broken_tests_are_refused(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        load_rows(tmp_path, row, task="code")


# Sources


def test_jsonl_parquet_json_and_dataset_folders_hold_the_same_data(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list(SUMS)
    write_jsonl(tmp_path / "rows.jsonl", SUMS)
    (tmp_path / "rows.json").write_text(json.dumps(SUMS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(SUMS), tmp_path / "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(SUMS), tmp_path / "upload-without-suffix")
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "saved-splits"))
    (tmp_path / "files").mkdir()
    write_jsonl(tmp_path / "files" / "train.jsonl", SUMS)
    names = ("rows.jsonl", "rows.json", "rows.parquet", "upload-without-suffix", "saved", "saved-splits", "files")
    loaded = [load_problems(DataSource(path=str(tmp_path / name)), "math") for name in names]
    assert {data.fingerprint for data in loaded} == {loaded[0].fingerprint}
    assert all(data.problems == loaded[0].problems for data in loaded)
    assert len(loaded[0].problems) == 30


def test_missing_split_names_the_ones_there_are(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(SUMS)}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="no split 'test'; the folder has train"):
        load_problems(DataSource(path=str(tmp_path / "saved"), split="test"), "math")


def test_missing_file_broken_parquet_and_empty_file_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_problems(DataSource(path=str(tmp_path / "absent.jsonl")), "math")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load_problems(DataSource(path=str(tmp_path / "broken.parquet")), "math")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no rows"):
        load_problems(DataSource(path=str(tmp_path / "empty.jsonl")), "math")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="not a readable dataset folder"):
        load_problems(DataSource(path=str(tmp_path / "folder")), "math")


def test_hub_out_of_reach_is_a_clear_error() -> None:
    with pytest.raises(DataError, match="dataset nobody/nothing at revision v1, split 'train': could not be loaded"):
        load_problems(DataSource(hub="nobody/nothing", revision="v1"), "math")


def test_generator_rows_are_deterministic_and_scored_by_their_own_scorer() -> None:
    source = DataSource(generator="polynomial_multiplication", size=3, seed=5)
    first, again = load_problems(source, "reasoning_gym"), load_problems(source, "reasoning_gym")
    assert first == again
    assert first.fingerprint != load_problems(source.model_copy(update={"seed": 6}), "reasoning_gym").fingerprint
    json.dumps([dict(problem.extra) for problem in first.problems])  # checkpoints keep them as JSON
    verdicts = load_task("reasoning_gym").verify_many([(each, each.answer) for each in first.problems])
    assert [verdict.correct for verdict in verdicts] == [True] * 3


def test_generator_whose_problems_have_no_one_answer_loads() -> None:
    problems = load_problems(DataSource(generator="graph_color", size=2), "reasoning_gym").problems
    assert [problem.answer for problem in problems] == ["", ""]


def test_unknown_generator_names_the_ones_there_are() -> None:
    with pytest.raises(DataError, match=r"no such generator; it has .*basic_arithmetic"):
        load_problems(DataSource(generator="no_such_thing", size=1), "reasoning_gym")
    with pytest.raises(DataError, match=r"no such generator; the closest are basic_arithmetic, "):
        load_problems(DataSource(generator="basic_aritmetic", size=1), "reasoning_gym")


def test_generator_rows_are_the_same_in_another_process() -> None:
    """Strings hash differently in every process; the rows must not show it."""
    source = DataSource(generator="polynomial_multiplication", size=4, seed=1)
    script = (
        "from trd_engine.config import DataSource; from trd_engine.data.problems import load_problems\n"
        f"print(load_problems(DataSource(**{source.model_dump()!r}), 'reasoning_gym').fingerprint)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == load_problems(source, "reasoning_gym").fingerprint


# Columns


def test_columns_are_mapped_and_take_the_place_of_ours(tmp_path: Path) -> None:
    row = {"q": "1+1", "final": 2, "problem": "not this", "why": "because", "nr": "x"}
    columns = {"problem": "q", "answer": "final", "solution": "why", "id": "nr"}
    assert load_rows(tmp_path, row, columns=columns) == [Problem("x", "1+1", "2", "because")]


def test_mapped_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: answer: columns maps it to 'final'; the row has"):
        load_rows(tmp_path, {"problem": "p", "answer": "1"}, columns={"answer": "final"})


# Refusals


def test_broken_row_17_is_named_with_its_field(tmp_path: Path) -> None:
    rows: list[Any] = [dict(row) for row in SUMS]
    del rows[16]["answer"]
    with pytest.raises(
        DataError, match=r"^row 17: answer: this field is required; the row's fields: problem, .*--column answer=NAME;"
    ):
        load_rows(tmp_path, *rows)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{not json", "row 17: not valid JSON"),
        ("[1, 2]", "row 17: must be a JSON object, not a list"),
        ({"problem": "  ", "answer": "1"}, "row 17: problem = .*: must not be empty"),
        ({"problem": {"a": 1}, "answer": "1"}, "row 17: problem = .*: must be a string or a number, not an object"),
        ({"id": "3", "problem": "p", "answer": "1"}, "row 17: id = 3: an earlier row has it; ids must differ"),
        ("[" * 100_000, "row 17: nests more than 100 levels deep"),
    ],
)
def test_every_kind_of_broken_row_is_named(broken: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        load_rows(tmp_path, *SUMS[:16], broken, *SUMS[17:])


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"problem": "p", "answer": "1"}\n\n{"problem": "\xff", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"^row 3: not UTF-8"):
        load_problems(DataSource(path=str(path)), "math")


def test_at_most_twenty_rows_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path, *[{"problem": "p"}] * 27)
    assert str(caught.value).count("answer: this field is required") == 20
    assert str(caught.value).endswith("; and 7 more")


# Fingerprint


def test_fingerprint_knows_content_and_order_but_not_the_order_of_columns() -> None:
    one, two = Problem("1", "p", "1", extra={"a": 1, "b": [2]}), Problem("2", "q", "2")
    assert fingerprint([one, two]) == fingerprint([replace(one, extra={"b": [2], "a": 1}), two])
    others = [[two, one], [one], [one, replace(two, answer="3")], [replace(one, solution=""), two]]
    assert len({fingerprint([one, two]), *map(fingerprint, others)}) == 5


# Split

PROBLEM_TEXTS = st.lists(st.text(alphabet="abcdef ", min_size=1, max_size=4), min_size=2, max_size=40)


def as_problems(texts: Iterable[str]) -> list[Problem]:
    return [Problem(str(number), text, "") for number, text in enumerate(texts)]


@given(PROBLEM_TEXTS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_is_a_partition_without_common_texts(texts: list[str], share: float, seed: int) -> None:
    problems = as_problems(texts)
    if len({" ".join(text.split()) for text in texts}) < 2:
        with pytest.raises(DataError, match="no two different"):
            split_holdout(problems, share, seed)
        return
    training, heldout = split_holdout(problems, share, seed)
    assert training
    assert heldout
    assert sorted(training + heldout, key=lambda p: int(p.id)) == problems
    assert not {p.problem.strip() for p in training} & {p.problem.strip() for p in heldout}
    assert split_holdout(problems, share, seed) == (training, heldout)


def test_added_rows_move_no_other_row() -> None:
    few, many = as_problems(f"problem {n}" for n in range(500)), as_problems(f"problem {n}" for n in range(1000))
    heldout_of_few = {p.id for p in split_holdout(few, 0.1, 0)[1]}
    heldout_of_many = {p.id for p in split_holdout(many, 0.1, 0)[1]}
    assert heldout_of_few == {name for name in heldout_of_many if int(name) < 500}
    assert 70 <= len(heldout_of_many) <= 130


def test_split_hangs_on_the_seed_and_not_on_spaces_or_case() -> None:
    problems = as_problems(f"problem {n}" for n in range(200))
    assert split_holdout(problems, 0.2, 0) != split_holdout(problems, 0.2, 1)
    shouted = [replace(p, problem=p.problem.upper() + "\n") for p in problems]
    assert [p.id for p in split_holdout(shouted, 0.2, 0)[1]] == [p.id for p in split_holdout(problems, 0.2, 0)[1]]


def test_no_share_holds_nothing_out() -> None:
    assert split_holdout(as_problems("ab"), 0.0, 0) == (as_problems("ab"), [])


def test_the_default_share_is_bounded() -> None:
    few, many = (as_problems(map(str, range(count))) for count in (500, 5_000))
    assert split_holdout(few, None, 0) == split_holdout(few, 0.02, 0)
    heldout = split_holdout(many, None, 0)[1]
    assert len(heldout) == 64 < len(split_holdout(many, 0.02, 0)[1])
    assert {p.id for p in heldout} <= {p.id for p in split_holdout(many, 0.02, 0)[1]}


ODD_ROWS = [
    {"problem": f"Question {i} on the text?", "answer": str(i), "context": f"A long passage number {i}.", "level": 3}
    for i in range(4)
]
MULTIPLE_CHOICE = [{"question": f"Which is {i}?", "choices": ["0", "1", "2"], "answer": 1} for i in range(4)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.json"])
def test_what_is_odd_about_the_rows_is_found_in_a_run_as_at_an_upload(name: str, tmp_path: Path) -> None:
    def codes(rows: list[dict[str, Any]], task: str) -> list[str]:
        path = tmp_path / name
        if name.endswith("parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            lines = [json.dumps(row) for row in rows]
            path.write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]")
        return [notice.code for notice in load_problems(DataSource(path=str(path)), task).notices]

    assert codes(ODD_ROWS, "math") == ["unread_columns"]
    assert codes(MULTIPLE_CHOICE, "math") == ["choices_unread"]
    assert codes(MULTIPLE_CHOICE, "choice") == []
    assert codes([{"problem": "2+2?", "answer": "4"}, {"problem": "2+2?", "answer": "5"}], "math") == [
        "conflicting_answers"
    ]
