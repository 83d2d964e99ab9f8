"""References that no answer could match, found by the process that the service starts after an upload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from trd_engine.tasks.references import judge_references


def report(*rows: dict[str, Any], seconds: float = 60.0) -> dict[str, Any]:
    lines = [json.dumps({"row": number, "solution": None, **row}).encode() for number, row in enumerate(rows, start=1)]
    return judge_references(lines, seconds)


def test_references_without_a_form_that_could_match_are_reported_with_an_example() -> None:
    bad = [
        r"\frac{1}{", "}", "", "x" * 3000, r"\frac{1}{2", r"\boxed{}",
        "The proof goes by induction on n, and the step uses the lemma that was shown in the first part of the paper",
    ]  # fmt: skip
    good = ["3e8", r"\frac{1}{2}", "Monday", "no solution", "(1,2)", r"\boxed{5}", "9 (apples)", r"\text{odd}"]
    found = report(*[{"answer": answer} for answer in [*good, *bad]])
    assert (found["num_judged"], found["num_references"]) == (15, 15)
    [notice] = found["notices"]
    assert notice["code"] == "unmatchable_references"
    assert notice["count"] == len(bad)
    assert notice["example"] == r"row 9: \frac{1}{"
    assert notice["tasks"] == ("math",)


def test_references_that_their_own_solution_contradicts_are_reported() -> None:
    found = report(
        {"answer": "4", "solution": r"so \boxed{5}"},
        {"answer": "0.5", "solution": r"first \boxed{3}, then \boxed{\frac{1}{2}}"},
        {"answer": "7", "solution": "no box"},
    )
    [notice] = found["notices"]
    assert (notice["code"], notice["count"]) == ("reference_contradicts_solution", 1)
    assert notice["example"] == "row 1: 4; its solution: 5"


def test_a_sample_is_judged_within_its_time() -> None:
    found = report(*[{"answer": str(number)} for number in range(2000)], {"answer": "1999"}, seconds=300.0)
    assert (found["num_judged"], found["num_references"], found["notices"]) == (1000, 2000, [])
    tower = "9^{9^{9^{9}}}"
    slow = [{"answer": f"{tower}+{number}", "solution": rf"\boxed{{1+{tower}}}"} for number in range(100)]
    assert report(*slow, seconds=1.0)["num_judged"] < 100


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
