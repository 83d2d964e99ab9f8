r"""Whether an equality that is wrong as it stands says something else where it stands.

``half of 10 + 2 = 7``, ``60 + 60 = 2 hours`` and ``suppose that 2 + 2 = 5`` are no wrong sums. What is around an
equality is looked at in four widths: what touches it, its clause, its sentence, and for other ways to count the whole
text. In doubt it says something else: a wrong sum that is passed over costs a hint, a right one called wrong misleads.
"""

from __future__ import annotations

import re
from fractions import Fraction

from trd_engine.tasks.math import equality_words as words
from trd_engine.tasks.math.units import is_measure

_WINDOW = 160
"""Characters looked at on either side: a text of nothing but wrong sums takes linear time."""

_SYMBOLS_BEFORE = frozenset("\"'`“‘”’—→⇒⟹➔•&|#>∴✓✔✅…")
_SYMBOLS_BEHIND = frozenset("\"'`“‘”’—→⇒⟹➔✓✔✅…&|#><≤≥≈]}\\")
_LABELS = re.compile(r"\(\d{1,2}\)\s?[-+]\s?\(\d{1,2}\)\s?=")
"""Perhaps of two equations, which are added."""
_MARKS = ".,;:!?"
_CLAUSE_ENDS = _MARKS + "=\n"
_WORD = re.compile(r"[A-Za-z]+(?:['’]t\b)?")
_LAST_WORD = re.compile(r"\\?[A-Za-z]{1,20}\Z")
_NEXT = re.compile(r"(?:[ \t$~]|\\[ ,;:!)\]]|\\(?:text|mathrm|textbf|mbox)\s?\{){0,8}(\\?(?:[A-Za-z]+|%)|\S)?")
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n\n")


def counts_otherwise(text: str) -> bool:
    """Whether a text speaks of modular arithmetic, another base or an operation of its own."""
    return words.OTHER_COUNTING.search(text) is not None


def says_something_else(text: str, start: int, end: int, ratio: Fraction | None) -> bool:
    """Whether the words around ``text[start:end]``, an equality that does not hold, may make it right.

    `ratio` is that of its sides, the greater to the smaller; None where one is zero or they differ in sign.
    """
    before, behind = text[max(0, start - _WINDOW) : start], text[end : end + _WINDOW]
    is_cents_in_dollars = ratio == 100 and "$" in text[start:end]
    return (
        is_cents_in_dollars
        or _LABELS.match(text, start) is not None
        or _is_operand(before)
        or _takes_all(_clause(before))
        or _goes_on(behind, ratio)
        or _is_unsaid(before, behind)
    )


def _is_operand(before: str) -> bool:
    """Whether what stands right before the equality belongs to its first number."""
    near = _without_space(before)
    last = near[-1:]
    if last in ("", "=", "\n"):
        return False
    if last in _MARKS:
        return _belongs_to_number(near, is_apart=len(near) < len(before))
    word = _LAST_WORD.search(near)
    if word is None:
        return last not in _SYMBOLS_BEFORE or near[:-1].rstrip()[-1:].isdigit()
    name = word.group().lower()
    if name.startswith("\\"):
        return word.group()[1:] not in words.COMMANDS
    if name in words.JOINS:
        return _has_number(_clause(near[: word.start()]))
    is_variable = len(name) == 1 and name not in "ai"
    return is_variable or (name in words.TAKES_NEXT and words.WHOLE.search(near) is None) or name in words.NUMBER_WORDS


def _without_space(before: str) -> str:
    """Up to the last character that is no space, in LaTeX either."""
    while (near := before.rstrip(" \t$").removesuffix("\\(").removesuffix("\\[").removesuffix("\\,")) != before:
        before = near
    return near


def _belongs_to_number(near: str, *, is_apart: bool) -> bool:
    """Whether a mark is one within or behind a number: 12:30, 1,5, 5! and the ratio 6 : 2."""
    rest = near[:-1]
    if near[-1] == ":" and is_apart:
        return rest != rest.rstrip() and rest.rstrip()[-1:].isdigit()
    return rest[-1:].isdigit() and (near[-1] == "!" or not is_apart)


def _clause(before: str) -> str:
    return before[max(before.rfind(mark) for mark in _CLAUSE_ENDS) + 1 :]


def _takes_all(clause: str) -> bool:
    return words.PART_OF.search(clause) is not None or any(
        word in words.TAKES_ALL
        or word.startswith(words.TAKES_ALL_STEMS)
        or words.TRIGONOMETRY.fullmatch(word) is not None
        for word in _words_of(clause)
    )


def _has_number(clause: str) -> bool:
    return any(character.isdigit() for character in clause) or not words.NUMBER_WORDS.isdisjoint(_words_of(clause))


def _words_of(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _goes_on(behind: str, ratio: Fraction | None) -> bool:
    """Whether what stands right behind the equality belongs to its last number: a unit, an operator, a power."""
    found = _NEXT.match(behind)
    following = found.group(1) if found else None
    if found is None or following is None:
        return False
    if following in _MARKS:
        is_within = found.start(1) == 0 and behind[1:2].isdigit()
        return following == "?" or is_within or (following == "!" and found.start(1) == 0)
    if following.startswith("\\") and len(following) > 1:
        return following[1:] not in words.COMMANDS
    if not following.isascii() or not following.isalpha():
        return following not in _SYMBOLS_BEHIND and following != "="
    word = following.lower()
    if words.IN_TOTAL.match(behind, found.start(1)):
        return False
    if len(word) == 1 or word in words.TAKES_LAST or is_measure(following):
        return True
    if words.AND_A_PART.match(behind, found.start(1)):
        return True
    # 24 eggs may be 2 boxes, and 2 boxes 24 eggs.
    return word not in words.GOES_ON and ratio is not None and ratio.denominator == 1


def _is_unsaid(before: str, behind: str) -> bool:
    """Whether the sentence supposes, denies, asks or rounds, or the next one refutes."""
    began = max((end.end() for end in _SENTENCE_END.finditer(before)), default=0)
    ended = _SENTENCE_END.search(behind)
    rest = behind[: ended.start()] if ended else behind
    return (
        (ended is not None and ended.group() == "?")
        or words.REFUTED.search(behind) is not None
        or any(
            word in words.UNSAID or word.startswith(words.UNSAID_STEMS) or word.endswith(("n't", "n’t"))
            for word in _words_of(f"{before[began:]} {rest}")
        )
    )
