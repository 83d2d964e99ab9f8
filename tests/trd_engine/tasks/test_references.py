"""References that no answer could match, found by the process that the service starts after an upload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import pytest

from trd_engine.tasks.references import judge_references
from trd_engine.tasks.verifier_pool.pool import GuardedPool


@pytest.fixture(scope="module")
def patient_pool() -> Iterator[GuardedPool]:
    """With time for every comparison on a busy machine."""
    with closing(GuardedPool("math", 60.0, num_workers=1)) as pool:
        yield pool


def report(*rows: dict[str, Any], pool: GuardedPool, seconds: float = 300.0) -> dict[str, Any]:
    """Judge as the process does."""
    numbered = [{"row": number, "solution": None, **row} for number, row in enumerate(rows, start=1)]
    return asdict(judge_references(numbered, seconds, pool))


def test_references_without_a_form_that_could_match_are_reported_with_an_example(patient_pool: GuardedPool) -> None:
    bad = [
        r"\frac{1}{", "}", "", "x" * 3000, r"\frac{1}{2", r"\boxed{}",
        "The proof goes by induction on n, and the step uses the lemma that was shown in the first part of the paper",
    ]  # fmt: skip
    good = ["3e8", r"\frac{1}{2}", "Monday", "no solution", "(1,2)", r"\boxed{5}", "9 (apples)", r"\text{odd}"]
    found = report(*[{"answer": answer} for answer in [*good, *bad]], pool=patient_pool)
    assert (found["num_judged"], found["num_references"]) == (15, 15)
    [notice] = found["notices"]
    assert notice["code"] == "unmatchable_references"
    assert notice["count"] == len(bad)
    assert notice["example"] == r"row 9: \frac{1}{"
    assert notice["tasks"] == ("math",)


MINERVA_LIKE = [
    ("3e8", r"3\times10^{8}", r"3\times10^{7}"), ("1e-05", "0.00001", "0.0001"), ("2.4e-6", r"2.4\cdot 10^{-6}", "2.4"),
    ("4.9e33", r"4.9\times 10^{33}\mathrm{~erg}", r"4.9\times 10^{32}"), ("6.6e-27", r"6.6e-27\text{ erg s}", "6.6"),
    ("1.0e10", "10^{10}", "10^{11}"), ("7.7e4", "77000", "7700"), ("8e13", r"80{,}000{,}000{,}000{,}000", "8e12"),
    ("5.5e-3", r"\frac{11}{2000}", "0.005"), ("-2.2e1", "-22", "22"), ("3.3E+5", "330{,}000", "33000"),
    ("1.5e2", r"1.5\times 10^2\text{ km}", "15"), ("9e0", "9", "0.9"),
    ("2e-12", r"2\times10^{-12}\,\mathrm{s}", "2e12"),
    ("12.5", r"12.5\text{ m}", "12"), ("0.7", r"0.70\mathrm{~eV}", "7"), (r"45^{\circ}", "45", "54"),
    ("15~\\mathrm{kpc}", "15", "51"), (r"4.2\text{ degrees}", "4.2", "42"), ("9 (apples)", "9", "8"),
    (r"\frac{1}{2}m v^{2}", r"\frac{m v^2}{2}", r"m v^2"),
    (r"\sqrt{\frac{2 E}{m}}", r"\sqrt{2E/m}", r"\sqrt{\frac{E}{m}}"),
    (r"e^{-2 t}", r"\mathrm{e}^{-2t}", r"e^{2t}"), (r"\frac{2}{s+3}", "2/(s+3)", r"\frac{2}{s-3}"),
    (r"x_{0} \cos (\omega t)", r"x_0\cos(\omega t)", r"x_0\sin(\omega t)"),
    ("1/(1+x)", r"\frac{1}{x+1}", r"\frac{1}{x}"),
    (r"m l^{2}", r"l^2 m", r"m l"), (r"\ln 2", "ln(2)", r"\ln 3"), (r"f=\frac{a}{b}", r"\frac{a}{b}", r"\frac{b}{a}"),
    ("1 1/4", "1.25", "11/4"), (r"0.\overline{6}", r"\frac{2}{3}", "0.6"),
]  # fmt: skip
"""Reference, a right answer and a wrong one."""


def test_references_of_science_problems_can_be_matched(patient_pool: GuardedPool) -> None:
    found = report(
        *[{"answer": reference, "solution": f"so \\boxed{{{right}}}"} for reference, right, _ in MINERVA_LIKE],
        pool=patient_pool,
    )
    assert found == {"num_judged": 31, "num_references": 31, "notices": []}
    found = report(
        *[{"answer": reference, "solution": f"so \\boxed{{{wrong}}}"} for reference, _, wrong in MINERVA_LIKE],
        pool=patient_pool,
    )
    [notice] = found["notices"]
    assert (notice["code"], notice["count"]) == ("reference_contradicts_solution", 31)


def test_references_that_their_own_solution_contradicts_are_reported(patient_pool: GuardedPool) -> None:
    found = report(
        {"answer": "4", "solution": r"so \boxed{5}"},
        {"answer": "0.5", "solution": r"first \boxed{3}, then \boxed{\frac{1}{2}}"},
        {"answer": "7", "solution": "no box"},
        pool=patient_pool,
    )
    [notice] = found["notices"]
    assert (notice["code"], notice["count"]) == ("reference_contradicts_solution", 1)
    assert notice["example"] == "row 1: 4; its solution: 5"


def test_a_sample_is_judged_within_its_time(patient_pool: GuardedPool) -> None:
    found = report(*[{"answer": str(number)} for number in range(2000)], {"answer": "1999"}, pool=patient_pool)
    assert (found["num_judged"], found["num_references"], found["notices"]) == (1000, 2000, [])
    tower = "9^{9^{9^{9}}}"
    slow = [{"answer": f"{tower}+{number}", "solution": rf"\boxed{{1+{tower}}}"} for number in range(100)]
    with closing(GuardedPool("math", 0.5, num_workers=1)) as pool:
        assert report(*slow, pool=pool, seconds=0.5)["num_judged"] < 100


def run(rows: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trd_engine.tasks.references"]
    return subprocess.run(
        command, input=rows, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_process_writes_one_object_or_says_why_not() -> None:
    done = run('{"row": 1, "answer": "3e8", "solution": null}\n')
    assert json.loads(done.stdout) == {"num_judged": 1, "num_references": 1, "notices": []}
    assert json.loads(run("").stdout)["num_references"] == 0
    broken = run("nonsense")
    assert broken.returncode == 2
    assert broken.stderr.startswith("references were not judged: ")


def test_it_loads_no_torch() -> None:
    code = "import sys, trd_engine.tasks.references; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
