r"""Finds the final answer of a text: the content of its last ``\boxed{}``, or the letter of the chosen option."""

from __future__ import annotations

import re
from fractions import Fraction

_BOX = re.compile(r"\\f?boxed\s*(?=\{)|\\boxed[ \t]+(?=[^\s{])")
_FRAMED = re.compile(r"\\fbox\s*(?=\{)")
"""A few solutions of MATH have it instead of a box."""
_BRACES = re.compile(r"[{}]|\\.", re.DOTALL)
_BARE_CONTENT = re.compile(r"[^\s$]+")

_JOINT = re.compile(
    r"(?:[\s$,;&{}]|\\[,;:! ()\[\]]|\\q?quad\b|\\(?:text|mathrm)(?=\s*\{)|\b(?:or|and)\b|\b[A-Za-z]\s*=)+"
)
_JOINING = re.compile(r"[,;&]|\b(?:or|and)\b")
_MAX_JOINT_CHARACTERS = 60
_MAX_BOXES = 20
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_BOXED_LETTER = re.compile(r"(?P<open>[(\[]?)\s*(?P<letter>[A-Za-z])\s*[)\]]?(?P<rest>(?:[.:,;/)\s\\&].*)?)", re.DOTALL)
_ANOTHER_LETTER = re.compile(
    r"\s*(?:[,;/&]|\b(?:or|and)\b)+\s*(?:or\s+|and\s+)?[(\[]?[A-Za-z](?![A-Za-z'])", re.IGNORECASE
)
_PROSE = re.compile(r"\s+[a-z']", re.IGNORECASE)
_LETTER = r"\b(?:\s+is)?(?:\s*[:=])?\s*(?:[*$]|\\\()*(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z])\b(?!')(?<!I(?=\s[a-z])))"
_ANSWER = re.compile(r"\b(?i:answer)" + _LETTER)
_OPTION = re.compile(r"\b(?i:option|choice)" + _LETTER)
_ALONE = re.compile(r"[*(\[]*([A-Z])[*)\].]*")
_NAMED = re.compile(r"[*(\[]*([A-Za-z])(?:[*)\].:]+(?:\s.*)?)?", re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac(?:\{([-+]?\d+)\}\{(\d+)\}|(\d)(\d))")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PLAIN_NUMBER = re.compile(
    r"[-+]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:e[-+]?\d{1,3})?|[-+]?\d{1,40}/0*[1-9]\d{0,40}"
)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{}``, braces balanced, or what follows a bare ``\boxed 5``; if there
    is neither, the content of the last ``\fbox{}``.

    None if there is no box, or if the last one is never closed: a solution that was cut off within its answer has none.
    """
    boxes = list(_BOX.finditer(text)) or list(_FRAMED.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start] == "{":
        return _balanced(text, start)
    bare = _BARE_CONTENT.match(text, start)
    return bare.group().rstrip(".,;") if bare else None


def boxed_answer(text: str) -> str | None:
    """Return the content of the last box, or of all that commas, "or" and "and" join to it, with commas between."""
    last = last_boxed(text)
    boxes = list(_BOX.finditer(text))
    if last is None or len(boxes) < 2 or text[boxes[-1].end()] != "{":
        return last
    contents = [last]
    next_start = boxes[-1].start()
    for box in reversed(boxes[-_MAX_BOXES:-1]):
        content = _balanced(text, box.end()) if text[box.end()] == "{" else None
        end = None if content is None else _end_of_group(text, box.end())
        if content is None or end is None or not _is_joint(text[end:next_start]):
            break
        contents.insert(0, content)
        next_start = box.start()
    return ", ".join(dict.fromkeys(contents))


def _is_joint(text: str) -> bool:
    is_short = len(text) <= _MAX_JOINT_CHARACTERS
    return is_short and _JOINT.fullmatch(text) is not None and _JOINING.search(text) is not None


def _balanced(text: str, start: int) -> str | None:
    r"""Return the inside of the group that opens at `start`; ``\{`` and ``\}`` are characters, not braces."""
    end = _end_of_group(text, start)
    return None if end is None else text[start + 1 : end - 1].strip()


def _end_of_group(text: str, start: int) -> int | None:
    """Return the offset behind the group that opens at `start`."""
    depth = 0
    for token in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0 and token.group() == "}":
            return token.end()
    return None


def chosen_letter(text: str) -> str | None:
    """Return the letter that a text chooses, as a capital."""
    if "\\boxed" in text:
        inside = _WRAPPED.sub(r"\1", last_boxed(text) or "").strip()
        found = _BOXED_LETTER.fullmatch(inside)
        return found["letter"].upper() if found is not None and _is_one_letter(found) else None
    # What a text calls its answer takes precedence over the options that it mentions before and after.
    stated = _ANSWER.findall(text) or _OPTION.findall(text)
    if stated:
        bracketed, bare = stated[-1]
        return str(bracketed or bare).upper()
    last_line = text.strip().rpartition("\n")[2].strip()
    alone = _ALONE.fullmatch(last_line)
    return alone.group(1) if alone else None


def _is_one_letter(found: re.Match[str]) -> bool:
    """Return whether a box holds a single option, possibly with its text: neither several options, nor a sentence that
    begins with a one-letter word."""
    if _ANOTHER_LETTER.match(found["rest"]):
        return False
    is_word = not found["open"] and (found["letter"].islower() or found["letter"] in "AI")
    return not (is_word and _PROSE.match(found["rest"]))


def reference_letter(text: str) -> str | None:
    """Return the letter that a reference answer names, as a capital: "b", "B. green" and "(B) green" are B too."""
    named = None if "\\boxed" in text else _NAMED.fullmatch(text.strip())
    return named.group(1).upper() if named else chosen_letter(text)


def comparable_answer(text: str) -> str | Fraction:
    """Return what two ways to write an answer have in common: the exact value of a plain number or fraction, else the
    text without its spaces, dollar signs, final stop and capitals."""
    bare = "".join((last_boxed(text) or text).split()).strip("$.").casefold()
    number = _FRACTION.sub(lambda found: "/".join(filter(None, found.groups())), _THOUSANDS.sub("", bare))
    return Fraction(number) if _PLAIN_NUMBER.fullmatch(number) else bare.replace("\\dfrac", "\\frac")
