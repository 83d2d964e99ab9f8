r"""Recompute, exactly, the plain equalities of a text: ``12 + 3 × 4 = 24``, each alone in its step.

Only a step (`trd_engine.tasks.steps`) that is nothing but an equality is checked: numbers with + − × ÷ and brackets on
both sides. Everything else is passed over. In a sentence the words decide what an equality means (``half of 10 + 2 =
7``), and a right sum that is called wrong misleads more than a wrong one that is missed.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

from trd_engine.tasks.steps import STEP, StepCheck

_MAX_STEP_CHARACTERS = 300
"""Longer steps are passed over: a model's runaway text would cost time."""
_ALONE = re.compile(
    r"\s*(?:(?:\d{1,3}[.)]|step \d{1,3}[.:)])\s+)?(?P<opening>\$\$?|\\[(\[])?(?:\s*[a-z]\s*=)?"
    r"(?P<chain>(?:[-\d.,+*/()\s×·÷−=]|\\(?:times|cdot|div)(?![a-z]))+)(?P<closing>\$\$?|\\[)\]])?[\s.,]*",
    re.IGNORECASE,
)
r"""A step's number, ``x =`` and a formula's delimiters may stand around an equality: ``1. $x = 3 + 4 = 7$``."""
_CLOSINGS = {None: None, "$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]"}
_OTHER_COUNTING = re.compile(
    r"\b(?:mod|modul\w+|congruen\w*|binary|octal|hexadecimal|clock)\b|\\[pb]?mod|≡"
    r"|\bbase[\s-]?\$?\d|\b(?:in|to) base\b",
    re.IGNORECASE,
)
"""A text may say far from its equalities that it does not compute with ordinary numbers."""

_SPELLINGS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "×": "*", "·": "*", "÷": "/", "−": "-"}
_SPELLED = re.compile(r"\\[a-z]+|[×·÷−]", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_FIRST_NUMBER = re.compile(r"[\d.]+(?=\s*[-+*/])")
_EQUATION_LABEL = re.compile(r"\(\s*\d+\s*\)")
"""``(1) + (2) = 7`` may add two equations."""
_APPLY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def check_equalities(text: str) -> StepCheck | None:
    """Return the equalities that can be checked as steps; None if there is none."""
    starts: list[int] = []
    first_wrong = None
    counts_otherwise = _OTHER_COUNTING.search(text) is not None
    for start, left, right in _equalities(text):
        values = _value(left), _value(right)
        if values[0] is None or values[1] is None:
            continue
        if not _are_equal(values[0], values[1], f"{left} {right}"):
            first_number = _FIRST_NUMBER.match(right)
            # 5 + 3 = 8 × 2 = 16 is careless, not wrong: the right side computes on from the left one's value.
            is_continued = first_number is not None and _value(first_number.group()) == values[0]
            if counts_otherwise or is_continued:
                continue
            first_wrong = len(starts) if first_wrong is None else first_wrong
        starts.append(start)
    return StepCheck(tuple(starts), first_wrong) if starts else None


def _equalities(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield start, left and right side of each ``a = b`` in the chains ``a = b = c`` that are whole steps."""
    for step in STEP.finditer(text):
        if "=" not in step.group() or len(step.group()) > _MAX_STEP_CHARACTERS:
            continue
        found = _ALONE.fullmatch(step.group())
        if found is None or _CLOSINGS[found["opening"]] != found["closing"] or _is_in_sentence(text, step):
            continue
        sides: list[tuple[int, str]] = []
        place = step.start() + found.start("chain")
        for side in found["chain"].split("="):
            sides.append((place + len(side) - len(side.lstrip()), _in_python(side)))
            place += len(side) + 1
        if sides[0][1][:1] in ("", "+", "-", "*", "/"):  # perhaps a bullet
            del sides[0]
        for (start, left), (_, right) in pairwise(sides):
            if any(sign in side[1:] for side in (left, right) for sign in "+-*/"):
                yield start, left, right


def _is_in_sentence(text: str, step: re.Match[str]) -> bool:
    """Return whether words on the line before lead up to the step, or those on the next line continue it."""
    before, behind = text[max(0, step.start() - 2) : step.start()], text[step.end() : step.end() + 2]
    return (before[:1].islower() and before[1:] == "\n") or (behind[:1] == "\n" and behind[1:].islower())


def _in_python(side: str) -> str:
    spelled = _SPELLED.sub(lambda match: _SPELLINGS[match.group().lower()], side)
    return _THOUSANDS.sub(lambda match: match.group().replace(",", ""), spelled).strip(" \t\r,").rstrip(".")


def _value(side: str) -> Fraction | None:
    """Return the exact value; None if the side is no expression or divides by zero."""
    if _EQUATION_LABEL.search(side):
        return None
    try:
        return _evaluate(ast.parse(side, mode="eval").body, side)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(source[node.col_offset : node.end_col_offset])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, source)
    if isinstance(node, ast.BinOp):
        return _APPLY[type(node.op)](_evaluate(node.left, source), _evaluate(node.right, source))
    raise ValueError("not plain arithmetic")


def _are_equal(left: Fraction, right: Fraction, texts: str) -> bool:
    """Compare exactly; or to the last decimal written, if an exact value does not fit in so many decimals."""
    unit = 10 ** max((len(decimals) for decimals in re.findall(r"\.(\d*)", texts)), default=0)
    is_rounded = any((value * unit).denominator > 1 for value in (left, right))
    return left == right or (is_rounded and abs(left - right) <= Fraction(1, unit))
