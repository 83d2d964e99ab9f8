r"""Spellings that parsers of LaTeX do not know, rewritten into those that they do.

Plain text is rewritten as LaTeX (``sqrt(2)``, ``pi/2``, ``x^(1/2)``, ``3e8``), bare units as text behind the number
(``9 (apples)``, ``5 cm``), and the joints of a list (``1 or 2``, ``\text{ and }``) as commas.
"""

from __future__ import annotations

import re

from trd_engine.tasks.math.units import SYMBOLS

_E_NOTATION = re.compile(r"(?<![\w.\\}])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?)0*(\d{1,4})(?![\w.])")
_EULER = re.compile(r"(?<![A-Za-z\\])e(?![A-Za-z])|\\(?:mathrm|text|operatorname)\s*\{\s*e\s*\}")
_SYMBOL = re.compile(r"\\(?:mathrm|text|operatorname)\s*\{\s*(e|i|pi)\s*\}")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|°|\\degree(?![A-Za-z]))")
_LIST_WORD = re.compile(
    r"\s*,?(?:\s|\\(?:[,;:! ]|q?quad(?![A-Za-z])))*(?:\\(?:text|mathrm|textbf|mbox)\s*\{\s*,?\s*(?:or|and)\s*\}"
    r"|(?<=[\s\d)\]}$])(?:or|and)(?=[\s$\\]))(?:\s|\\(?:[,;:! ]|q?quad(?![A-Za-z])))*|\s*;\s*"
)
_WORDS = r"(?:[A-Za-z]+\.?(?:[ -][A-Za-z]+\.?)*)"
_DIVIDED_UNITS = re.compile(
    r"\\(?:text|mathrm)\s*\{[\s~]*([A-Za-z]+)\s*\}\s*/\s*\\(?:text|mathrm)\s*\{[\s~]*([A-Za-z]+)\s*\}"
)
_NO_LETTER = re.compile(r"^\s*[A-Za-z]\s*=|\\[A-Za-z]+")
_LETTER = re.compile(r"[A-Za-z]")
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp"
_PLAIN = (
    (re.compile(r"^\s*\\(?:text|mbox)\s*\{([^{}]*\d[^{}]*)\}\s*$"), r"\1"),
    (re.compile(r"\\\(|\\\)|\\\[|\\\]|(?<!\\)\$"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle)(?![A-Za-z])|\\!|\{\}(?=.)"), ""),
    (re.compile(r"(?<=[\d\s{])[aA]\.?[mM]\b\.?"), "am"),
    (re.compile(r"(?<=[\d\s{])[pP]\.?[mM]\b\.?"), "pm"),
    (_DIVIDED_UNITS, r"\\text{ \1/\2}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=[\s({{\d]|[a-z](?![a-z]))"), r"\\\1"),
    (re.compile(r"<=|=<"), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\\{(?:\s|\\[,;:! ])*\\\}|^\s*\{\s*\}\s*$"), r"\\emptyset "),
    (re.compile(r"^\s*(?:\\text\s*\{)?\s*(?:the )?empty set\s*\}?\s*$", re.IGNORECASE), r"\\emptyset "),
    (re.compile(r"\\?(?<![A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*(\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*\(([^(),]*)\)"), r"^{\1}"),
    (re.compile(r"(?<![A-Za-z\\{])(?<!\{\s)pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"(?:\\text\s*\{\s*)?\b(?:percent|per cent|pct)\b(?:\s*\})?|\uff05"), r"\\%"),
    (re.compile(r"^\s*[£€¥₹](?=\s*[\d.(\\-])|(?<=\d)\s*[£€¥₹]\s*$|^\s*(?:USD|EUR|Rs\.?)\s+(?=\d)"), ""),
    (re.compile(r"(?:\\text|\\mathrm)\s*\{\s*(?:degrees?)\s*\}\s*$|(?<=\d)\s*degrees?\s*$"), ""),
)
_BRACKETED_UNIT = re.compile(rf"(?<=[\d}}])\s*\(\s*({_WORDS})\s*\)\s*$")
_KNOWN_UNIT = rf"(?:{'|'.join(sorted(map(re.escape, SYMBOLS), key=len, reverse=True))})(?![A-Za-z])"
_BARE_UNIT = re.compile(
    rf"(?<=[\d}}])(?!\s+(?:and|or|mod|if|where|[AaPp]\.?[Mm])\b)"
    rf"(?:(?<=\d)(?=[A-Za-z]{{2}})(?={_KNOWN_UNIT})|\s+(?={_KNOWN_UNIT}|[A-Za-z]{{3}}))"
    r"([A-Za-z]+\.?(?:[ /-]+[A-Za-z]+\.?)*)\s*(?:\^\s*\{?([23])\}?|([²³]))?\s*\.?\s*$"
)
"""Behind a number: glued to it, a unit of the table of units; after a space, any word of three letters too."""
_SUPERSCRIPTS = {"²": "2", "³": "3"}
_ONLY_WORDS = re.compile(r"[^\d\\]*")


def spell(answer: str, *, reference: str) -> str:
    """Return an answer, or the reference, in the spelling of LaTeX.

    Digits, e and digits are a power of ten, except beside Euler's number: in 3e-2 if the reference is e^2 or 3e.
    """
    answer = _SYMBOL.sub(_bare_symbol, answer)
    if not mentions_euler(answer) and not mentions_euler(reference):
        answer = _E_NOTATION.sub(_power_of_ten, answer)
    for pattern, replacement in _PLAIN:
        answer = pattern.sub(replacement, answer)
    if _TRIGONOMETRIC.search(answer):
        answer = _DEGREES.sub(r"{\\frac{\1\\pi}{180}}", answer)
    if not _ONLY_WORDS.fullmatch(answer):
        answer = _BRACKETED_UNIT.sub(r"\\text{ \1}", answer)
        answer = _BARE_UNIT.sub(_unit, answer)
    return answer.strip()


def with_commas(answer: str) -> str:
    """Return the answer with commas between the parts of a list."""
    return _LIST_WORD.sub(", ", answer)


def mentions_euler(answer: str) -> bool:
    """Return whether the letter e stands alone: digits around it make a power of ten of it."""
    return _EULER.search(_E_NOTATION.sub("", answer)) is not None


def _bare_symbol(found: re.Match[str]) -> str:
    if found.group(1) == "pi":
        return "\\pi "
    # No space unless a command ends here: math-verify reads a letter between spaces as a unit.
    return (" " if found.string[: found.start()][-1:].isalpha() else "") + found.group(1)


def _power_of_ten(found: re.Match[str]) -> str:
    return f"{found.group(1)}\\times 10^{{{found.group(2).replace('+', '')}{found.group(3)}}}"


def _unit(found: re.Match[str]) -> str:
    if _LETTER.search(_NO_LETTER.sub("", found.string[: found.start()])):
        return found.group()  # l^2 m is a product
    power = found.group(2) or _SUPERSCRIPTS.get(found.group(3) or "")
    return f"\\text{{ {found.group(1)}}}" + (f"^{power}" if power else "")
