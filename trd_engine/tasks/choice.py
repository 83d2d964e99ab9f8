r"""Task `choice`: the answer is the letter of an option."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trd_engine.tasks.boxed import last_boxed
from trd_engine.tasks.protocol import Pair, PromptTemplates
from trd_engine.tasks.templates import CHOICE
from trd_engine.types import Problem, Verdict

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


class ChoiceTask:
    r"""Takes the letter in the last box, else the last one called the answer, then option, else a lone last line."""

    name = "choice"

    @property
    def prompts(self) -> PromptTemplates:
        """Ask for a boxed letter."""
        return CHOICE

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct if the letters are the same."""
        letter = chosen_letter(completion_text)
        if letter is None:
            return Verdict(False, "no answer")
        return Verdict(letter == reference_letter(problem.answer), letter)

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return the verdicts of `verify`, one after another."""
        return [self.verify(problem, text) for problem, text in pairs]


def chosen_letter(text: str) -> str | None:
    """Return the letter that a text settles on, as a capital."""
    if "\\boxed" in text:
        inside = _WRAPPED.sub(r"\1", last_boxed(text) or "").strip()
        found = _BOXED_LETTER.fullmatch(inside)
        return found["letter"].upper() if found is not None and _is_one_letter(found) else None
    # What a text calls its answer outranks the options that it names on the way, before and after.
    stated = _ANSWER.findall(text) or _OPTION.findall(text)
    if stated:
        bracketed, bare = stated[-1]
        return str(bracketed or bare).upper()
    last_line = text.strip().rpartition("\n")[2].strip()
    alone = _ALONE.fullmatch(last_line)
    return alone.group(1) if alone else None


def _is_one_letter(found: re.Match[str]) -> bool:
    """Return whether a box holds one option, perhaps with its text: neither several options, nor a sentence whose first
    word is a single letter."""
    if _ANOTHER_LETTER.match(found["rest"]):
        return False
    is_word = not found["open"] and (found["letter"].islower() or found["letter"] in "AI")
    return not (is_word and _PROSE.match(found["rest"]))


def reference_letter(text: str) -> str | None:
    """Return the letter that a reference answer names, as a capital: "b", "B. green" and "(B) green" are B too."""
    named = None if "\\boxed" in text else _NAMED.fullmatch(text.strip())
    return named.group(1).upper() if named else chosen_letter(text)
