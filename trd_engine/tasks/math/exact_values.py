r"""The exact value of an answer that is plain arithmetic: ``1\frac14``, ``3\times10^{8}``, ``0.\overline{3}``.

Floats would find 1/2^90 and 1/2^91 equal. Whatever is more than arithmetic with rational numbers has no value here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<repeated>\\(?:overline|bar|dot)\s*\{\d+\}"
    r"|(?:(?<=\.)|(?<=\.\d)|(?<=\.\d\d)|(?<=\.\d\d\d))\(\d+\))?"
    r"|(?P<command>\\(?:frac|sqrt|times|cdot|div|ast))(?![A-Za-z])|(?P<sign>[-+*/^!(){}]))"
)
_SIGNS = {"\\times": "*", "\\cdot": "*", "\\ast": "*", "\\div": "/"}
_DECIMAL = re.compile(r"[+-]?\d*\.(\d+)")
_MAX_CHARACTERS = 400
"""Longer texts are left to the verifier: exact fractions of them would cost time."""
_MAX_BITS = 100_000
_MAX_FACTORIAL = 3000
_MIN_ROUNDED_DIGITS = 6


class _NoValueError(ValueError):
    """The text is not plain arithmetic, or its value is too long."""


def exact_value(normal: str) -> Fraction | None:
    """Return the exact value of a normal form; None if it is not plain arithmetic."""
    if not normal or len(normal) > _MAX_CHARACTERS:
        return None
    try:
        return _Reader(normal).whole()
    except (_NoValueError, ZeroDivisionError, RecursionError, OverflowError):
        return None


def is_rounding(decimal: str, value: Fraction) -> bool:
    """Return whether `decimal` is `value` cut off or rounded at six or more digits, and no decimal is `value` itself.

    0.333333 counts as 1/3, and 0.333 does not.
    """
    found = _DECIMAL.fullmatch(decimal)
    if found is None or len(decimal.lstrip("+-0.").replace(".", "")) < _MIN_ROUNDED_DIGITS:
        return False
    denominator = value.denominator
    for factor in (2, 5):
        while denominator % factor == 0:
            denominator //= factor
    return denominator > 1 and abs(Fraction(decimal) - value) < Fraction(1, 10 ** len(found.group(1)))


class _Reader:
    """Reads by recursive descent: sums of products of powers."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, Fraction | None]] = []
        place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise _NoValueError
            self._tokens.append(_token(found))
            place = found.end()
        self._place = 0

    def whole(self) -> Fraction:
        value = self._sum()
        if self._place < len(self._tokens):
            raise _NoValueError
        return value

    def _next(self) -> str:
        return self._tokens[self._place][0] if self._place < len(self._tokens) else ""

    def _take(self, *signs: str) -> str:
        if self._next() not in signs or not self._next():
            return ""
        self._place += 1
        return self._tokens[self._place - 1][0]

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+", "-"):
            value += self._product() if sign == "+" else -self._product()
        return value

    def _product(self) -> Fraction:
        value, has_divided = self._signed(), False
        while True:
            if sign := self._take("*", "/"):
                factor = self._signed()
                value = value * factor if sign == "*" else value / factor
                has_divided = sign == "/"
            elif self._next() in ("(", "\\frac", "\\sqrt") and not has_divided:
                value *= self._power()  # 1/2(3) may mean either
            else:
                if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
                    raise _NoValueError
                return value

    def _signed(self) -> Fraction:
        if self._take("-"):
            return -self._signed()
        return self._signed() if self._take("+") else self._power()

    def _power(self) -> Fraction:
        value = self._atom()
        while self._take("!"):
            if value.denominator != 1 or not 0 <= value <= _MAX_FACTORIAL:
                raise _NoValueError
            value = Fraction(math.factorial(int(value)))
        if self._take("^"):
            exponent = self._group()
            length = max(value.numerator.bit_length(), value.denominator.bit_length())
            if exponent.denominator != 1 or abs(exponent) * length > _MAX_BITS:
                raise _NoValueError
            value **= int(exponent)
        return value

    def _group(self) -> Fraction:
        """Read an exponent, or an argument of a command: in braces, or one signed number."""
        if self._take("{"):
            return self._bracketed("}")
        return -self._number() if self._take("-") else self._number()

    def _atom(self) -> Fraction:
        if sign := self._take("(", "{"):
            return self._bracketed(")" if sign == "(" else "}")
        if self._take("\\frac"):
            return self._group() / self._group()
        if self._take("\\sqrt"):
            value = self._group()
            if value < 0:
                raise _NoValueError
            root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
            if root * root != value:
                raise _NoValueError
            return root
        return self._mixed(self._number())

    def _mixed(self, whole: Fraction) -> Fraction:
        """Add the fraction of a mixed number, 1 1/4, that stands behind its whole part."""
        start = self._place
        if whole.denominator != 1:
            return whole
        parts: tuple[Callable[[], Fraction], Callable[[], Fraction]] | None = None
        if self._take("\\frac"):
            parts = self._group, self._group
        elif self._next() == "number":
            parts = self._number, self._divisor
        if parts is None:
            return whole
        above, below = parts[0](), parts[1]()
        if above.denominator == below.denominator == 1 and 0 < above < below:
            return whole + above / below
        self._place = start
        if self._next() == "number":
            raise _NoValueError  # 3 4 is neither 34 nor 12
        return whole

    def _divisor(self) -> Fraction:
        if not self._take("/"):
            raise _NoValueError
        return self._number()

    def _number(self) -> Fraction:
        if self._next() != "number":
            raise _NoValueError
        value = self._tokens[self._place][1]
        self._place += 1
        assert value is not None
        return value

    def _bracketed(self, closing: str) -> Fraction:
        value = self._sum()
        if not self._take(closing):
            raise _NoValueError
        return value


def _token(found: re.Match[str]) -> tuple[str, Fraction | None]:
    if found["number"] is None:
        sign = found["command"] or found["sign"]
        return _SIGNS.get(sign, sign), None
    value = Fraction(found["number"])
    if found["repeated"] is None:
        return "number", value
    _, point, decimals = found["number"].partition(".")
    if not point:
        raise _NoValueError
    digits = re.sub(r"\D", "", found["repeated"])
    return "number", value + Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(decimals))
