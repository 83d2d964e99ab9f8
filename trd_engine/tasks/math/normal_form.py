r"""Written forms of one mathematical answer, brought together without computing anything.

Only notation: spaces, ``\left``, ``\dfrac`` for ``\frac``, Unicode for LaTeX, units in words. Equal results
mean equal answers; different ones mean nothing yet.
"""

from __future__ import annotations

import re
from fractions import Fraction

from trd_engine.tasks.math import units as math_units

_UNICODE = {
    "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "\\div ", "π": "\\pi ", "∞": "\\infty ",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ", "±": "\\pm ",
    "°": "^\\circ ", "θ": "\\theta ", "∈": "\\in ", "⋅": "\\cdot ", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "⅕": "\\frac{1}{5}", "⅙": "\\frac{1}{6}", "⅛": "\\frac{1}{8}",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|([0-9A-Za-z.]+))")

_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?")
_SAME_COMMAND = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (_SIZES, ""),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])"), r"\\ge"),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne"),
    (re.compile(r"\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:[,;:!> ]|q?quad(?![a-zA-Z]))|~"), " "),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:mathrm|mathbf|textbf|textit|operatorname|mbox|mathit|boldsymbol)(?=\s*\{)"), r"\\text"),
    (re.compile(r"\\\$|\$"), ""),
    (re.compile(r"(?<=\d)\{,\}(?=\d{3})"), ","),
)
_THOUSANDS = re.compile(r"(?<![\d.,])[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\s+")
_COMMAND_SPACE = re.compile(r"(?<=[a-zA-Z])\s+(?=[a-zA-Z])|(?<=\d)\s+(?=\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:\s\d{3})+(?![\d])")
_MARK = re.compile(r"(?<=\d)(?:_\{?(\d+)\}?|([AaPp])\.?[Mm]\.?)$")
"""What follows a number and makes it another one: the base, or the half of the day."""
_NEGATION = re.compile(r"\\(?:ne|neg|lnot|not)(?![a-zA-Z])")
_DENIAL = re.compile(
    r"\b(?:is|was|be)(?:n['’]t\b|\s+(?:not|no|never|wrong|incorrect|false|untrue|invalid|impossible)\b)"
    r"|\(\s*(?:wrong|incorrect|false|untrue|invalid)\s*\)"
    r"|\bnot\s+(?:right|correct|true|valid|(?:the|an)\s+(?:\w+\s+)?answer)\b",
    re.IGNORECASE,
)
"""Words behind a number that call it wrong. Without a verb they may be what is counted: 7 wrong answers."""
_LETTER = re.compile(r"[A-Za-z]\s*=\s*(?=[^=])")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_MAX_NUMBER_CHARACTERS = 400
"""Longer digit strings are left to the verifier: exact fractions of them would cost time."""


def in_latex(answer: str) -> str:
    """Return the answer with Unicode mathematics, and words that are part of a number, written in LaTeX."""
    answer = _SUPERSCRIPT.sub(lambda match: "^{" + match.group().translate(_SUPERSCRIPTS) + "}", answer)
    answer = _ROOT.sub(lambda match: "\\sqrt{" + match.group(match.lastindex or 0) + "}", answer)
    for character, latex in _UNICODE.items():
        answer = answer.replace(character, latex)
    return math_units.spell_out_factors(answer)


def without_sizes(answer: str) -> str:
    r"""Return the answer in LaTeX, without the ``\left`` and ``\right`` of its brackets."""
    return _SIZES.sub("", in_latex(answer))


def without_unit(answer: str) -> str:
    r"""Return the answer in LaTeX, without a unit as ``\text`` at its end."""
    return math_units.UNIT.sub("", in_latex(answer).rstrip().removesuffix("."))


def normalise(answer: str) -> str:
    """Return one written form for answers that differ in notation only."""
    answer = math_units.UNIT.sub("", _with_same_commands(answer))
    answer = _TEXT.sub(r"\1", answer)
    answer = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", answer)
    answer = _LETTER.sub("", answer, count=1) if _LETTER.match(answer) and answer.count("=") == 1 else answer
    answer = _SPACED_THOUSANDS.sub(lambda match: _SPACE.sub("", match.group()), answer)
    # A space that ends a command is kept as a separator, \pi r is not \pir, and so is one between two numbers.
    answer = _COMMAND_SPACE.sub("\x00", answer)
    return _SPACE.sub("", answer).replace("\x00", " ")


def differ_in_units(one: str, other: str) -> bool:
    """Return True for two answers with different units; one may have none, and 5 be 5 cm."""
    return math_units.differ_in_units(_with_same_commands(one), _with_same_commands(other))


def differ_in_marks(one: str, other: str) -> bool:
    """Return True for two normal forms whose numbers differ in base or half of the day, which parsers ignore."""
    ours, theirs = _MARK.search(one), _MARK.search(other)
    if ours is None or theirs is None:
        return False
    return [part and part.lower() for part in ours.groups()] != [part and part.lower() for part in theirs.groups()]


def differ_in_negation(one: str, other: str) -> bool:
    """Return True if exactly one of two normal forms says what the value is not, which parsers ignore."""
    return (_NEGATION.search(one) is None) != (_NEGATION.search(other) is None)


def differ_in_denial(one: str, other: str) -> bool:
    r"""Return True if exactly one of two answers calls itself wrong, as ``7\text{ is wrong}`` does."""
    return _denies(one) != _denies(other)


def contradicts_itself(reference: str, answer: str) -> bool:
    """Return True for a chain such as 8=7 with two different numbers; a parser uses only its last side."""
    if "=" not in answer or "=" in reference:
        return False
    values = {as_number(side) for side in answer.split("=")} - {None}
    return len(values) > 1


def as_number(normal: str) -> Fraction | None:
    """Return the exact value of a plain decimal, with or without thousands separators; None for all else."""
    if len(normal) > _MAX_NUMBER_CHARACTERS:
        return None
    if _THOUSANDS.fullmatch(normal):
        normal = normal.replace(",", "")
    return Fraction(normal) if _NUMBER.fullmatch(normal) else None


def _denies(answer: str) -> bool:
    return any(_DENIAL.search(words) for words in _TEXT.findall(_with_same_commands(answer)))


def _with_same_commands(answer: str) -> str:
    answer = in_latex(answer)
    for pattern, replacement in _SAME_COMMAND:
        answer = pattern.sub(replacement, answer)
    return answer.strip().rstrip(".").rstrip()
