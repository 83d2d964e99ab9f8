"""Task math on answers that are written in many ways, and on comparisons that hang or kill."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trd_engine.rollouts.verify import Verifier
from trd_engine.runtime.errors import VerifierUnavailableError
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.math.compare import compare
from trd_engine.tasks.math.normal_form import as_number, normalise
from trd_engine.tasks.math.task import MathTask
from trd_engine.tasks.verifier_pool import pool as guarded_process
from trd_engine.tasks.verifier_pool.pool import GuardedPool
from trd_engine.types import Problem, Verdict


@pytest.fixture(scope="module")
def task() -> Iterator[MathTask]:
    pool = GuardedPool("math", 20.0, num_workers=1)
    yield MathTask(pool)
    pool.close()


def problem(answer: str) -> Problem:
    return Problem("1", "?", answer)


SAME = [
    ("2", "02"), ("02", "2"), ("2", "2.0"), ("0.5", ".5"), ("-3", "−3"), ("5", "5."), ("1234", "1,234"),
    ("1{,}234", "1234"), ("204", "+204"), ("1000000", "1,000,000"),
    (r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"), (r"\dfrac{3}{4}", r"\tfrac{3}{4}"), (r"\frac{1}{2}", "½"),
    (r"3\frac{1}{2}", "3.5"), (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"\{1,2,3\}", r"\{3, 2, 1\}"), ("1,2", "2,1"), (r"\left\{1, 2\right\}", r"\{1,2\}"),
    ("(1,2]", r"\left( 1, 2 \right]"), (r"[0,\infty)", "[0, ∞)"), (r"(-\infty,0)\cup(1,2)", "(−∞, 0) ∪ (1, 2)"),
    ("(3,4)", r"\left(3, 4\right)"), ("-2<x<3", "(-2,3)"),
    ("5", r"5\text{ cm}"), (r"12\text{ cm}^2", "12"), (r"\$18", "18"), ("18", r"\$18.00"), ("90", r"90^\circ"),
    ("90°", r"90^{\circ}"), (r"50\%", "50%"), ("50", r"50\%"), (r"50\%", "0.5"),
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"2\sqrt{3}", "√12"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("(x+1)^2", "x^2+2x+1"), ("x²+1", "x^2 + 1"), ("x = 5", "5"), (r"\pi r^2", "πr²"), ("10^{2}", "100"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    (r"\pm 2", "2, -2"), (r"\text{Monday}", "Monday"), (r"\mathrm{no\ solution}", r"\text{no solution}"),
    ("1 000", "1000"), (r"12\,345", "12345"), ("101_2", "101_{2}"), ("101_2", "101"),
    ("10000000", r"10\text{ million}"), (r"3\text{ dozen eggs}", "36"), ("300000", r"3~\mathrm{hundred\ thousand}"),
    (r"2.5\text{ million}", r"2.5\text{ Million dollars}"), ("2i", r"2\mathrm{i}"), ("4e", r"4\,\text{e}"),
    (r"3+2\mathrm{i}", "3+2i"), (r"0.5\pi", r"0.5\text{ pi}"), (r"2\pi i", r"2\pi\mathrm{i}"),
    ("5", r"5\text{ m}"), (r"5\text{ m}", r"5.0\text{ meters}"), (r"12\text{ cm}^2", r"12\text{ square centimeters}"),
    (r"12\text{ sq. cm}", r"12\mathrm{~cm^{2}}"), (r"12\text{ square units}", r"12\text{ cm}^2"),
    (r"60\text{ mph}", r"60\text{ miles per hour}"), (r"5\text{ ways}", r"5\text{ different ways}"),
    (r"90^\circ\text{C}", "90"), (r"90\text{ degrees}", r"90^\circ\mathrm{F}"), (r"3\text{ boxes}", r"3\text{ box}"),
    (r"1\text{ person}", r"1\text{ persons}"), (r"5\text{ people}", r"5\text{ persons}"),
    (r"\boxed{7}", "7"), (r"$\frac{7}{2}$", "3.5"), (r"6 \times 10^3", "6000"),
    ("7", "3+4=7"), ("7", "x = 7.0 = 7"), (r"x \ne 3", "x ≠ 3"), ("1.5", r"\frac{3}{2}=1.5"), ("1,2", "x=1, x=2"),
    ("7", r"7\text{ wrong answers}"), ("7", r"7\text{ are wrong}"), ("7", r"7\text{ false positives}"),
    ("7", r"7\text{ apples}"), ("7", r"7\text{ cm}"), ("7", r"7\text{ students not here}"),
    ("7", r"7\text{ is the answer}"), (r"\text{it is false}", r"\text{it is false}"),
]  # fmt: skip
DIFFERENT = [
    ("2", "3"), ("2", "20"), ("12", "1,2"), (r"\frac{1}{2}", r"\frac{2}{1}"), ("(1,2]", "[1,2)"),
    ("0.333", r"\frac{1}{3}"),
    (r"\{1,2\}", r"\{1,2,3\}"), ("(x+1)^2", "x^2+1"), (r"\sqrt{2}", "2"), ("5", r"\text{five or six}"), ("-3", "3"),
    (r"\pi", "3"), (r"\text{Monday}", r"\text{Tuesday}"), ("(3,4)", "(4,3)"), ("1234", "1,23,4"), ("x^2", "x^3"),
    ("34", "3 4"), ("101_2", "101_3"), (r"10\text{ AM}", r"10\text{ PM}"), ("10:00", "11:00"),
    (r"10:00\text{ AM}", r"10:00\text{ p.m.}"),
    ("10", r"10\text{ million}"), (r"12\text{ thousand}", "12"), ("3", r"3\text{ dozen}"), ("2", r"2\mathrm{i}"),
    ("4", r"4\mathrm{e}"), ("3", r"3\text{x}"), ("0.5", r"0.5\text{ pi}"), (r"2\text{ million}", r"2\text{ billion}"),
    (r"5\text{ cm}", r"5\text{ m}"), (r"\frac{1}{2}\text{ hour}", r"0.5\text{ min}"),
    (r"5\text{ dollars}", r"5\text{ cents}"), (r"12\text{ cm}^2", r"12\text{ cm}^3"), (r"5\text{ m/s}", r"5\text{ m}"),
    (r"90^\circ\text{C}", r"90^\circ\text{F}"), (r"3\text{ million dollars}", "3"),
    ("7", r"\ne 7"), ("7", r"x \neq 7"), ("7", r"\neg 7"), ("7", r"\not 7"), ("7", "8 = 7"), ("5", "1=2=3=5"),
    (r"x \ne 3", "3"), ("7", r"7\text{ is wrong}"), ("7", r"7\textbf{ is not the answer}"), ("7", r"7\text{ (wrong)}"),
    ("7", r"7 \mathrm{ isn't right}"), ("7", r"7\text{ apples is incorrect}"), ("7", r"7\text{, not the right answer}"),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "answer"), SAME)
def test_same_answers_in_other_words(task: MathTask, reference: str, answer: str) -> None:
    assert task.verify(problem(reference), f"so $\\boxed{{{answer}}}$.") == Verdict(True, answer)


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_different_answers(task: MathTask, reference: str, answer: str) -> None:
    assert task.verify(problem(reference), f"so $\\boxed{{{answer}}}$.") == Verdict(False, answer)


@pytest.mark.parametrize("text", ["", "the answer is 2", r"\boxed{1} no: \boxed{2", r"\boxed{}"])
def test_no_closed_box_is_no_answer(task: MathTask, text: str) -> None:
    assert task.verify(problem("2"), text) == Verdict(False, "no answer")


@pytest.mark.parametrize("answer", [r"\frac{1}{", r"\left(", "}{", "x" * 3000, "\x00", "\\" * 99, "😀", "(" * 200])
def test_nonsense_is_wrong_and_breaks_nothing(task: MathTask, answer: str) -> None:
    assert not task.verify(problem(r"\frac{1}{2}"), f"\\boxed{{{answer}}}").correct
    assert task.verify(problem(r"\frac{1}{2}"), r"\boxed{0.5}").correct


def test_many_verdicts_come_in_order(task: MathTask) -> None:
    texts = [r"\boxed{0.5}", r"\boxed{2}", "none", r"\boxed{\frac{2}{4}}", r"\boxed{0.5}"]
    verdicts = task.verify_many([(problem(r"\frac{1}{2}"), text) for text in texts])
    assert [verdict.correct for verdict in verdicts] == [True, False, False, True, True]
    assert task.verify_many([]) == []


@given(st.integers(-(10**9), 10**9))
def test_plain_numbers_are_settled_without_mathematics(value: int) -> None:
    for written in (f"{value:,}", f"{value:+d}", f"{value}.0", f" {value} "):
        assert compare(str(value), written) is True
    assert compare(str(value), str(value + 1)) is False


@given(st.decimals(-1000, 1000, places=3))
def test_decimals_are_exact(value: object) -> None:
    assert as_number(normalise(str(value))) == Fraction(str(value))


@example("√()")
@example("$1 %")
@example("\\(.")
@given(st.text(alphabet="\\frac{}12 ,.xπ√²½%$()", max_size=30))
def test_no_text_breaks_the_fast_path(text: str) -> None:
    compare("5", text)
    assert compare(text, text) is True


HANGING = "9^{9^{9^{9}}}", "9^{9^{9^{9}+1}}"
"""Two towers of powers that sympy takes out to the last digit."""


def test_hanging_comparison_is_a_verdict_and_the_next_one_works() -> None:
    pool = GuardedPool("math", 2.0, num_workers=1)
    task = MathTask(pool)
    try:
        task.verify(problem(r"\sqrt{12}"), r"\boxed{2\sqrt{3}}")  # started: what follows measures the limit alone
        started = time.monotonic()
        assert task.verify(problem(HANGING[0]), f"\\boxed{{{HANGING[1]}}}") == Verdict(False, "time-out", "time-out")
        assert time.monotonic() - started < 10.0
        assert task.verify(problem(r"\sqrt{12}"), r"\boxed{2\sqrt{3}}").correct
    finally:
        pool.close()


def process_ids(pool: GuardedPool) -> list[int]:
    """Return the ids of the pool's children that have started."""
    return [worker._process.pid for worker in pool._workers if worker._process is not None]


def test_killed_verifier_is_a_verdict_and_the_next_one_works() -> None:
    pool = GuardedPool("math", 20.0, num_workers=1)
    task = MathTask(pool)
    try:
        task.verify(problem(r"\sqrt{12}"), r"\boxed{2\sqrt{3}}")
        [worker] = process_ids(pool)
        killer = threading.Timer(0.5, os.kill, (worker, signal.SIGKILL))
        killer.start()
        verdict = task.verify(problem(HANGING[0]), f"\\boxed{{{HANGING[1]}}}")
        killer.join()
        assert not verdict.correct
        assert verdict.detail == "error: the verifier died: exit code -9"
        assert task.verify(problem(r"\sqrt{12}"), r"\boxed{2\sqrt{3}}").correct
    finally:
        pool.close()


def test_a_verifier_that_never_starts_ends_the_run_and_judges_nothing(tmp_path: Path) -> None:
    pool = GuardedPool("nonsense", 1.0, num_workers=1)
    pairs = [(problem(r"\sqrt{12}"), r"\boxed{2\sqrt{3}}")]
    with (
        Reporter(tmp_path) as reporter,
        pytest.raises(VerifierUnavailableError, match="'nonsense' does not start: Ass"),
    ):
        Verifier(MathTask(pool)).verdicts(pairs, reporter)
    assert process_ids(pool) == []


def test_a_start_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "tried"
    once = f"import os\nif not os.path.exists({str(marker)!r}):\n    open({str(marker)!r}, 'w')\n    os._exit(7)\n"
    monkeypatch.setattr(guarded_process, "_START", once + guarded_process._START)
    pool = GuardedPool("math", 20.0, num_workers=1)
    try:
        assert MathTask(pool).verify(problem(r"\sqrt{12}"), r"\boxed{2\sqrt{3}}").correct
    finally:
        pool.close()
    assert marker.exists()


def test_an_answer_that_comes_again_is_not_compared_again(task: MathTask, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("1", "?", r"\frac{x+1}{2}")
    texts = [r"\boxed{\frac{x}{2}+\frac{1}{2}}", r"\boxed{\frac{x}{2}}", r"\boxed{\frac{x}{2}}"]
    first = task.verify_many([(problem, text) for text in texts])
    monkeypatch.setattr(task._pool, "map", lambda requests: [None for _ in requests if pytest.fail("compared again")])
    again = task.verify_many([(problem, text) for text in texts])
    assert [verdict.correct for verdict in first] == [True, False, False]
    assert again == first


def test_works_from_other_threads(task: MathTask) -> None:
    verdicts: list[Verdict] = []

    def verify(answer: str) -> None:
        verdicts.append(task.verify(problem(r"\sqrt{12}"), f"\\boxed{{{answer}}}"))

    threads = [threading.Thread(target=verify, args=(answer,)) for answer in (r"2\sqrt{3}", r"\sqrt{3}+\sqrt{3}")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdict.correct for verdict in verdicts] == [True, True]
