"""Answers that try to change what judges them: they change no later verdict, and reach nothing of the machine."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from trd_data.plain_json import plain_json
from trd_engine.runtime.errors import SpecError
from trd_engine.tasks.code.task import CodeTask
from trd_engine.tasks.exact import ChoiceTask
from trd_engine.tasks.math.task import MathTask
from trd_engine.tasks.reasoning_gym import ReasoningGymTask, gym_request
from trd_engine.tasks.registry import load_task
from trd_engine.tasks.sandbox.attacks import successful_attacks
from trd_engine.tasks.sandbox.confinement import Confinement
from trd_engine.tasks.sandbox.runner import find_confinement
from trd_engine.tasks.verifier_pool import pool as verifier_pool
from trd_engine.tasks.verifier_pool.evaluated import EVALUATING_SCORERS, may_be_evaluated
from trd_engine.tasks.verifier_pool.pool import GuardedPool
from trd_engine.types import Problem

reasoning_gym = pytest.importorskip("reasoning_gym")

_UNFILTERED = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from trd_engine.tasks.verifier_pool.evaluated import EVALUATING_SCORERS; EVALUATING_SCORERS.clear(); "
    "from trd_engine.tasks.verifier_pool.child import main; main(sys.argv[2:])"
)
"""A child that lets every program reach the scorers, so that the processes alone are tested."""

REWRITES = """
import gc
for thing in gc.get_objects():
    if isinstance(thing, type) and hasattr(thing, "score_answer"):
        try:
            thing.score_answer = lambda self, answer, entry: 1.0
        except Exception:
            pass
"""
REWRITES_MORE = """
import builtins, sys
for module in list(sys.modules.values()):
    for name in ("isclose", "simplify", "parse_expr", "dumps", "loads", "verify", "parse"):
        if hasattr(module, name):
            setattr(module, name, lambda *a, **k: 1)
builtins.float = lambda *a: 1.0
builtins.open = builtins.eval = builtins.sorted = lambda *a, **k: None
"""
FORGES = """
import os
for descriptor in range(256):
    try:
        os.write(descriptor, b'{"value": 1.0}')
    except OSError:
        pass
os._exit(0)
"""
FORGES_MANY = FORGES.replace("1.0}'", '1.0}\\n{"value": 1.0}\\n\'')
KILLS = """
import os, signal
for process in (os.getppid(), 1, 0, -1):
    for number in (signal.SIGKILL, signal.SIGSTOP):
        try:
            os.kill(process, number)
        except OSError:
            pass
"""
FORKS = """
import os, threading
try:
    while os.fork():
        pass
except OSError:
    pass
threading.Thread(target=print).start()
"""
LIVES_ON = """
import os, time
for descriptor in range(256):
    try:
        os.close(descriptor)
    except OSError:
        pass
time.sleep(60)
"""
FLOODS = """
import os
for descriptor in range(3, 256):
    try:
        while True:
            os.write(descriptor, b"x" * 65536)
    except OSError:
        pass
"""
ATTACKS = [REWRITES, REWRITES_MORE, FORGES, FORGES_MANY, KILLS, FORKS, LIVES_ON, FLOODS]


def evaluated_by(scorer: str, program: str) -> str:
    """Return an answer whose evaluation by the scorer runs the program."""
    if EVALUATING_SCORERS[scorer] == "python":
        return f"exec({program!r}, {{}})"
    return f"sqrt.__globals__['__builtins__']['exec']({program!r})"


def gym_problem(scorer: str) -> Problem:
    entry = plain_json(reasoning_gym.create_dataset(scorer, size=1, seed=3)[0])
    return Problem("1", entry["question"], entry["answer"] or "", None, {"entry": entry})


@pytest.fixture(scope="module")
def unfiltered() -> Iterator[GuardedPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifier_pool, "_START", _UNFILTERED)
        pool = GuardedPool("reasoning_gym", 3.0, num_workers=1)
        ReasoningGymTask(pool).verify(gym_problem("countdown"), "1")  # started while it is patched
    yield pool
    pool.close()


def test_what_only_compares_texts_is_not_forked_and_all_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    without_fork = (
        "import sys; sys.path.insert(0, sys.argv[1]); from trd_engine.tasks.verifier_pool import child; "
        'child._judged_in_fork = lambda *request: b\'{"failure": "would fork"}\'; child.main(sys.argv[2:])'
    )
    monkeypatch.setattr(verifier_pool, "_START", without_fork)
    with closing(GuardedPool("reasoning_gym", 3.0, num_workers=1)) as pool:
        for scorer, is_forked in (("simple_equations", False), ("caesar_cipher", False), ("countdown", True)):
            problem = gym_problem(scorer)
            texts = (f"<answer>{problem.answer}</answer>", "<answer>another</answer>")
            right, wrong = ReasoningGymTask(pool).verify_many([(problem, text) for text in texts])
            assert (right.correct, wrong.correct) == (not is_forked, False)
            assert (wrong.detail == "would fork") == is_forked


@pytest.mark.parametrize("scorer", EVALUATING_SCORERS)
def test_no_program_reaches_a_scorer_that_evaluates(scorer: str) -> None:
    """Its own verdict is right as well: what would write a forged one is never run."""
    task, problem = load_task("reasoning_gym"), gym_problem(scorer)
    programs = [f"<answer>{evaluated_by(scorer, program)}</answer>" for program in (REWRITES, FORGES)]
    texts = [*programs, "<answer>1 + 1</answer>", f"<answer>{problem.answer}</answer>"]
    verdicts = task.verify_many([(problem, text) for text in texts])
    assert [verdict.correct for verdict in verdicts] == [False, False, False, True]


@pytest.mark.parametrize("scorer", EVALUATING_SCORERS)
def test_a_program_that_is_evaluated_changes_no_later_verdict(scorer: str, unfiltered: GuardedPool) -> None:
    task, problem = ReasoningGymTask(unfiltered), gym_problem(scorer)
    for program in ATTACKS if scorer in ("spiral_matrix", "countdown") else [REWRITES]:
        task.verify(problem, evaluated_by(scorer, program))
        assert not task.verify(problem, "<answer>1 + 1</answer>").correct
        assert task.verify(problem, problem.answer).correct


def test_an_evaluated_program_reaches_nothing_of_the_machine(unfiltered: GuardedPool) -> None:
    """The attack that code tasks' sandboxes withstand, from within a scorer."""
    problem = gym_problem("spiral_matrix")

    def run(program: str, arguments: Sequence[Any]) -> list[str]:
        program = program.replace("    assert write(", "    # ")  # a verifier may write nowhere
        reports = "import os\nfor d in range(3, 99):\n try: os.write(d, json.dumps({'value': found}).encode())\n"
        ending = f"import json\nfound = attack(*{list(arguments)!r})\n{reports} except OSError: pass\nos._exit(0)"
        reply = unfiltered.call(gym_request(problem, evaluated_by("spiral_matrix", program + ending)))
        assert isinstance(reply.value, list), reply
        return reply.value

    assert successful_attacks(run) == []


@pytest.mark.parametrize("forged", ['"x"', "[[1]]", "true", "null", "{}"])
def test_a_forged_reply_of_another_type_is_a_verdict(forged: str, unfiltered: GuardedPool) -> None:
    program = FORGES.replace('{"value": 1.0}', f'{{"value": {forged}}}')
    verdict = ReasoningGymTask(unfiltered).verify(gym_problem("n_queens"), evaluated_by("n_queens", program))
    assert not verdict.correct
    assert verdict.failure == "error"


def test_every_scorer_that_evaluates_answers_is_known() -> None:
    """Read from the installed library: a new version may bring another one."""
    found = set()
    for name, (dataset, _) in reasoning_gym.factory.DATASETS.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(dataset.score_answer)))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "") for node in calls}
        evaluated = [ast.unparse(node.args[0]) for node in calls if ast.unparse(node.func) == "eval"]
        if called & {"exec", "parse_expr", "sympify", "literal_eval"} or "answer" in evaluated:
            found.add(name)
    assert found == set(EVALUATING_SCORERS)


@pytest.mark.parametrize(
    ("scorer", "answer"),
    [
        ("countdown", "3*(4 + 5) - 6/2"), ("puzzle24", "(8 - 4)*6*1"), ("countdown", "-3 + 4**2"),
        ("simple_integration", "x**2/2 + C"), ("intermediate_integration", "-x*cos(x) + sin(x) + C"),
        ("intermediate_integration", "log(Abs(x)) + exp(2*x)*sqrt(x)/3"), ("polynomial_multiplication", "3*x**2 - y"),
        ("spiral_matrix", "1 2 3 -4"), ("spiral_matrix", "[1, 2, -3]"), ("string_insertion", "ABCDE"),
        ("string_insertion", "['A', 'B']"), ("binary_matrix", "0 1\n1 0"), ("n_queens", "_ Q _ _\nQ _ _ _"),
        ("basic_arithmetic", "__import__('os')"),
    ],
)  # fmt: skip
def test_answers_that_are_no_programs_reach_their_scorer(scorer: str, answer: str) -> None:
    assert may_be_evaluated(scorer, answer)


@pytest.mark.parametrize(
    ("scorer", "answer"),
    [
        ("countdown", "__import__('os')"), ("countdown", "sqrt.__globals__"), ("countdown", "sqrt('exec(1)')"),
        ("countdown", "().__class__.__base__.__subclasses__()"), ("countdown", "exec('1')+5!"), ("countdown", "f'{x}'"),
        ("countdown", "lambda: 1"), ("countdown", "[x for x in (1,)]"), ("countdown", "(x := 24)"),
        ("countdown", "__builtins__"), ("countdown", "S('1')"), ("countdown", "sympify(1)"), ("countdown", "sqrt(x=1)"),
        ("countdown", "sqrt(*x)"), ("countdown", "1 if x else 2"), ("countdown", "x[0]"), ("countdown", "b'1'"),
        ("spiral_matrix", "exec('1')"), ("spiral_matrix", "[].append"), ("spiral_matrix", "f'{exec(1)}'"),
        ("n_queens", "(lambda: 1)()"), ("binary_matrix", "[x for x in y]"), ("binary_matrix", "{**x}"),
        ("countdown", "-" * 100_000 + "1"), ("countdown", "(" * 100_000),
        ("spiral_matrix", "[" * 90 + "exec(1)" + "]" * 90), ("countdown", "1\x00"),
    ],
)  # fmt: skip
def test_answers_that_are_programs_do_not(scorer: str, answer: str) -> None:
    assert not may_be_evaluated(scorer, answer)


PYTHON_IN_MATH = [
    r"\text{__import__('os')._exit(0)}", r"\{\text{exec(1)}\}", "__import__('os')._exit(0)", "exec('1')",
    r"\operatorname{exec}('1')", "().__class__", r"[__import__('os'), 1)", "1 if exec('1') else 2",
    r"\begin{pmatrix}__import__('os')\end{pmatrix}", "1 + __import__('os').getpid()",
]  # fmt: skip


def test_python_in_a_boxed_answer_changes_no_later_verdict() -> None:
    pool = GuardedPool("math", 20.0, num_workers=1)
    task, problem = MathTask(pool), Problem("1", "?", r"\frac{\sqrt{2}}{2}")
    try:
        texts = [f"\\boxed{{{answer}}}" for answer in PYTHON_IN_MATH]
        texts += [r"\boxed{\frac{1}{\sqrt{2}}}", r"\boxed{\frac{1}{\sqrt{3}}}"]
        verdicts = task.verify_many([(problem, text) for text in texts])
    finally:
        pool.close()
    assert [verdict.correct for verdict in verdicts] == [False] * len(PYTHON_IN_MATH) + [True, False]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_changes_neither_its_verdict_nor_the_next(attack: str) -> None:
    """Of tests by input and output: their expected values never enter the program's process."""
    task = CodeTask(find_confinement())
    problem = Problem("1", "?", "", None, {"tests": {"kind": "stdio", "inputs": ["1\n"], "outputs": ["2\n"]}})
    attack = attack.replace("time.sleep(60)", "os._exit(0)").replace("range(3, 256)", "(1,)")
    texts = [f"```python\n{program}\n```" for program in (attack, "print(3)", "print(2)")]
    assert [task.verify(problem, text).correct for text in texts] == [False, False, True]


def test_a_choice_is_compared_and_never_evaluated() -> None:
    problem = Problem("1", "?", "B")
    for text in (r"\boxed{exec('import os')}", r"\boxed{__import__('os')}", "answer: B if exec('1') else C"):
        ChoiceTask().verify(problem, text)
        assert ChoiceTask().verify(problem, r"\boxed{B}").correct
        assert not ChoiceTask().verify(problem, r"\boxed{C}").correct


@pytest.fixture
def machine_without_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trd_engine.tasks.sandbox.runner.candidates", lambda: [])
    monkeypatch.setattr(verifier_pool, "find_confinement", find_confinement.__wrapped__)


@pytest.mark.usefixtures("machine_without_layers")
def test_without_layers_no_answer_is_evaluated_unless_the_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRD_ALLOW_UNCONFINED_VERIFIERS", raising=False)
    pool = GuardedPool("math", 20.0, num_workers=1)
    task, problem = MathTask(pool), Problem("1", "?", r"\sqrt{12}")
    words = r"needs Linux .* on this machine: none of it\. .*TRD_ALLOW_UNCONFINED_VERIFIERS=1"
    for name in ("math", "reasoning_gym"):
        with pytest.raises(SpecError, match=words):
            load_task(name)
    with pytest.raises(SpecError, match=words):
        task.verify(problem, r"\boxed{2\sqrt{3}}")
    monkeypatch.setenv("TRD_ALLOW_UNCONFINED_VERIFIERS", "1")
    for name in ("math", "reasoning_gym"):
        load_task(name)
    try:
        assert task.verify(problem, r"\boxed{2\sqrt{3}}").correct
    finally:
        pool.close()


def test_landlock_alone_confines_a_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_pool, "find_confinement", lambda: Confinement("none", landlock=True))
    pool = GuardedPool("math", 20.0, num_workers=1)
    try:
        assert MathTask(pool).verify(Problem("1", "?", r"\sqrt{12}"), r"\boxed{2\sqrt{3}}").correct
    finally:
        pool.close()
