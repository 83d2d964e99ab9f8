r"""Words behind a number: which of them are part of its value, and which units are the same.

Parsers of mathematics ignore them all: they would read ``10\text{ million}`` as 10, and 5 cm as 5 m.
"""

from __future__ import annotations

import re

_SPACES = r"(?:\s|~|\\[,;:! ])*"
_WRAPPED = rf"\\(?:text|mathrm|mathbf|textbf|textit|operatorname|mbox|mathit|boldsymbol)\s*\{{{_SPACES}"
_MULTIPLIERS = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_MULTIPLIER = rf"(?:{'|'.join(_MULTIPLIERS)})s?\b"
_FACTORS = re.compile(
    rf"(?<=[\d}})]){_SPACES}{_WRAPPED}((?:{_MULTIPLIER}{_SPACES})+)([^{{}}]*)\}}", re.IGNORECASE
)  # fmt: skip
_SYMBOL = re.compile(rf"(?<=[0-9A-Za-z}})]){_SPACES}{_WRAPPED}(pi|(?![CFJKLNVWghms])[A-Za-z]){_SPACES}\}}")
"""A letter that is no unit, as the i of 2i."""
UNIT = re.compile(
    r"(?:(?<=[\d})])|(?<=\\pi)|(?<=\\pi ))"
    r"\s*\\text\s*\{\s*(?![AaPp]\.?[Mm]\b)(?P<words>[A-Za-z][A-Za-z./ ]*)(?:\^\{?(?P<inside>[23])\}?)?\s*\}"
    r"(?:\s*\^\s*\{?(?P<behind>[23])\}?)?\s*$"
)
_SAYS_NOTHING = {"unit", "degree"}
_SAME = (
    ("mm", "millimeter", "millimetre"), ("cm", "centimeter", "centimetre"), ("m", "meter", "metre"),
    ("km", "kilometer", "kilometre"), ("in", "inch"), ("ft", "foot", "feet"), ("yd", "yard", "yds"), ("mi", "mile"),
    ("g", "gram"), ("kg", "kilogram", "kgs"), ("lb", "pound", "lbs"), ("oz", "ounce"), ("L", "l", "liter", "litre"),
    ("mL", "ml", "milliliter", "millilitre"), ("s", "sec", "second"), ("min", "minute"), ("h", "hr", "hour", "hrs"),
    ("mi/h", "mph"), ("km/h", "kph", "kmh"), ("C", "celsius"), ("F", "fahrenheit"), ("K", "kelvin"),
    ("dollar",), ("cent",), ("euro",), ("day",), ("week",), ("month",), ("year", "yr"), ("mg", "milligram"),
    ("ton", "tonne"), ("gal", "gallon"), ("quart",), ("pint",), ("cup",), ("acre",), ("hectare",), ("N", "newton"),
    ("J", "joule"), ("W", "watt"), ("V", "volt"), ("Pa", "pascal"), ("Hz", "hertz"), ("eV",), ("mol", "mole"),
    ("rad", "radian"),
)  # fmt: skip
SYMBOLS = {word: words[0] for words in _SAME for word in words}
_POWER_WORDS = (
    (re.compile(r"\b(?:square|sq) ([^\s/]+)"), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu) ([^\s/]+)"), r"\1^3"),
    (re.compile(r" squared\b"), "^2"),
    (re.compile(r" cubed\b"), "^3"),
)
_PART = re.compile(r"\^[23]$")
_PER = re.compile(r" ?(?:/|\bper\b) ?")
_PLURAL = re.compile(r"(?:(?<=x)|(?<=ss)|(?<=[cs]h))es$|(?<=\w\w[^s])s$")


def spell_out_factors(answer: str) -> str:
    r"""Return the LaTeX of an answer with ``\text{ million}`` as a factor, and ``\mathrm{i}`` as the bare symbol."""
    answer = _FACTORS.sub(_as_factor, answer)
    return _SYMBOL.sub(lambda match: " \\pi " if match.group(1) == "pi" else f" {match.group(1)}", answer)


def differ_in_units(one: str, other: str) -> bool:
    r"""Return True if each of two answers, their wrappers all ``\text``, has a unit that the other lacks.

    Words that are no such unit say nothing: "people" may be "persons".
    """
    ours, theirs = _unit(one), _unit(other)
    are_measures = all(_PART.sub("", unit) in SYMBOLS for units in (ours, theirs) for unit in _parts(units))
    return are_measures and not (ours <= theirs or theirs <= ours)


def _as_factor(match: re.Match[str]) -> str:
    words = re.findall(_MULTIPLIER, match.group(1), re.IGNORECASE)
    factors = "".join(f" \\times {_MULTIPLIERS[word.casefold().removesuffix('s')]}" for word in words)
    return f"{factors}\\text{{ {match.group(2)}}}" if match.group(2) else factors


def _unit(answer: str) -> frozenset[str]:
    """Return the words of an answer's unit, each in one form; none if there is no unit."""
    found = UNIT.search(answer)
    if found is None:
        return frozenset()
    power = found["inside"] or found["behind"]
    words = " ".join(found["words"].replace(".", " ").split()) + (f"^{power}" if power else "")
    for pattern, replacement in _POWER_WORDS:
        words = pattern.sub(replacement, words)
    units = ("/".join(map(_symbol, word.split("/"))) for word in _PER.sub("/", words).split())
    return frozenset(unit for unit in units if unit.partition("^")[0] not in _SAYS_NOTHING)


def _parts(units: frozenset[str]) -> list[str]:
    """Return the units, those on both sides of a slash separately."""
    return [part for unit in units for part in ([unit] if unit in SYMBOLS else unit.split("/"))]


def _symbol(word: str) -> str:
    name, mark, power = word.partition("^")
    singular = _PLURAL.sub("", name.lower())
    symbol = SYMBOLS.get(name) or SYMBOLS.get(singular, singular)
    return SYMBOLS.get(symbol, symbol) + mark + power
