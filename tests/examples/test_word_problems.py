"""The word problems: right, varied, and held out for good."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.word_problems import MAX_SIZE, TEMPLATES, draw_problems, main, split_of
from trd_engine.config import DataSource
from trd_engine.data.problems import load_problems
from trd_engine.tasks.registry import load_task

_EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def test_every_step_is_true_and_the_last_one_is_the_answer() -> None:
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for problem in draw_problems("train", 700, seed=3):
        equations = _EQUATION.findall(problem.solution)
        assert equations
        for left, operation, right, result in equations:
            assert operations[operation](int(left), int(right)) == int(result) >= 0
            assert operation != "/" or int(left) % int(right) == 0
        assert int(equations[-1][3]) == problem.answer


def test_numbers_of_a_problem_are_all_that_its_solution_starts_from() -> None:
    for problem in draw_problems("train", 280, seed=4):
        known = set(re.findall(r"\d+", problem.text))
        for left, _, right, result in _EQUATION.findall(problem.solution):
            assert {left, right} <= known
            known.add(result)


def test_problems_are_varied_and_deterministic() -> None:
    problems = draw_problems("train", 140, seed=0)
    assert problems == draw_problems("train", 140, seed=0)
    assert problems != draw_problems("train", 140, seed=1)
    without_numbers = {re.sub(r"\d+", "#", problem.text) for problem in problems}
    assert len(TEMPLATES) >= 12
    assert len(without_numbers) > 80


def test_heldout_problems_are_in_no_training_file_of_any_seed() -> None:
    heldout = {problem.text for problem in draw_problems("heldout", 500, seed=0)}
    assert len(heldout) == 500
    for seed in range(5):
        training = {problem.text for problem in draw_problems("train", 2000, seed=seed)}
        assert len(training) == 2000
        assert not training & heldout
        assert {split_of(text) for text in training} == {"train"}


def test_largest_sizes_are_there() -> None:
    assert len(draw_problems("train", MAX_SIZE["train"], seed=0)) == MAX_SIZE["train"]
    assert len(draw_problems("heldout", MAX_SIZE["heldout"], seed=0)) == MAX_SIZE["heldout"]


def test_files_are_data_that_the_engine_takes_and_verifies(tmp_path: Path) -> None:
    out, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    command = [sys.executable, "-m", "examples.word_problems", "--out", str(out), "--size", "30", "--seed", "7"]
    root = Path(__file__).parents[2]
    subprocess.run([*command, "--heldout", str(heldout), "--heldout-size", "20"], cwd=root, check=True)
    problems = load_problems(DataSource(path=str(out)), "math").problems
    assert len(problems) == 30
    assert len(heldout.read_text().splitlines()) == 20
    verdicts = load_task("math").verify_many([(each, each.solution or "") for each in problems])
    assert all(verdict.correct for verdict in verdicts)
    assert set(json.loads(out.read_text().splitlines()[0])) == {"id", "problem", "answer", "solution"}


@pytest.mark.parametrize("size", ["0", "-1", "1000000"])
def test_sizes_without_end_are_refused(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "x.jsonl"), "--size", size])
    assert "must be between" in capsys.readouterr().err
