"""Rows of EvalPlus, HumanEval+ and MBPP+: inputs without outputs, and a solution that computes them.

A row becomes a test script (kind "check", see `code`) that contains the canonical solution: the program must return
the same as it for every input of `base_input` and `plus_input`. Numbers may differ by `atol`, tuples count as lists,
and the few problems with several right answers are compared as sets, or by the property of a right answer.
"""

from __future__ import annotations

import json
from typing import Any

from trd_data.problems import Problem
from trd_data.shapes import fields
from trd_data.shapes.fields import Row, wrong

_UNORDERED = frozenset(
    {
        "similar_elements",
        "find_char_long",
        "common_in_nested_lists",
        "extract_singly",
        "larg_nnum",
        "intersection_array",
        "find_dissimilar",
        "Diff",
    }
)
"""MBPP's functions whose answer is a set, written as a list in any order."""
_FLOAT_TOLERANCE = 1e-6
"""Used if the row gives none."""

_SCRIPT = '''
import copy as _copy
import json as _json
import math as _math

_reference_names = {{"__name__": "reference"}}
exec({reference!r}, _reference_names)
_reference = _reference_names[{entry_point!r}]


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _expected(arguments):
    """The reference's answer, and the arguments as it takes them: JSON has no tuples, and some functions need them."""
    for convert in (_copy.deepcopy, lambda given: list(map(_as_tuples, given))):
        try:
            return convert(arguments), _reference(*_copy.deepcopy(convert(arguments)))
        except Exception:
            continue
    return None, None


def _same(wanted, given):
    if isinstance(wanted, (list, tuple)) and isinstance(given, (list, tuple)):
        return len(wanted) == len(given) and all(map(_same, wanted, given))
    if isinstance(wanted, dict) and isinstance(given, dict):
        return wanted.keys() == given.keys() and all(_same(wanted[key], given[key]) for key in wanted)
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    if isinstance(wanted, float) and isinstance(given, (int, float)):
        same_nan = _math.isnan(wanted) and _math.isnan(given)
        return same_nan or _math.isclose(wanted, given, rel_tol=1e-7, abs_tol={atol!r})
    return wanted == given


def _is_right(arguments, wanted, given):
    if {entry_point!r} == "find_zero":
        return abs(sum(c * given**i for i, c in enumerate(arguments[0]))) <= {atol!r}
    if {is_unordered!r}:
        return set(given) == set(wanted)
    return _same(wanted, given)


def check(candidate):
    num_checked = 0
    for _given in _json.loads({inputs!r}):
        _arguments, _wanted = _expected(_given)
        if _arguments is not None:
            _answer = candidate(*_copy.deepcopy(_arguments))
            assert _is_right(_arguments, _wanted, _answer), "another answer than the reference's"
            num_checked += 1
    assert num_checked, "the reference answers none of the inputs"
'''


def from_evalplus_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (prompt, entry_point, canonical_solution, base_input, plus_input, atol)."""
    prompt = fields.text(row, "prompt", ("prompt",))
    inputs = [*_inputs(row, "base_input"), *_inputs(row, "plus_input")]
    canonical = fields.text(row, "canonical_solution", ("canonical_solution",))
    entry_point = fields.text(row, "entry_point", ("entry_point",))
    # HumanEval's prompt is the head of the function; MBPP's is a docstring, and its solution stands alone.
    is_head = f"def {entry_point}" in prompt
    reference = prompt + canonical if is_head else canonical
    script = _SCRIPT.format(
        reference=reference,
        entry_point=entry_point,
        atol=fields.tolerance(row, "atol", _FLOAT_TOLERANCE),
        is_unordered=entry_point in _UNORDERED,
        inputs=json.dumps(inputs),
    )
    tests = {"kind": "check", "entry_point": entry_point, "preamble": prompt if is_head else "", "test": script}
    asked = "Complete this function" if is_head else f"Write the function {entry_point}"
    question = f"{asked}:\n```python\n{prompt.strip()}\n```"
    return Problem(row_id, question, "", f"```python\n{reference.strip()}\n```", {"tests": tests})


def _inputs(row: Row, name: str) -> list[list[Any]]:
    """Return argument lists, one per call."""
    value = fields.parse_json(row.get(name) or [], name)
    if not isinstance(value, list) or not all(isinstance(arguments, list) for arguments in value):
        raise wrong(name, value, "must be a list of argument lists")
    if name == "base_input" and not value:
        raise wrong(name, value, "must not be empty")
    return value
