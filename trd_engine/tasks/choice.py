r"""Task `choice`: the answer is the letter of an option."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trd_engine.tasks.boxed import last_boxed
from trd_engine.tasks.prompts import CHOICE
from trd_engine.tasks.protocol import Pair, PromptTemplates
from trd_engine.types import Problem, Verdict

_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_BOXED_LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?(?:[.:,)\s].*)?", re.DOTALL)
_STATED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is)?\s*[:=]?\s*[*(\[]*([A-Z])\b(?!')", re.IGNORECASE)
_ALONE = re.compile(r"[*(\[]*([A-Z])[*)\].]*")
_NAMED = re.compile(r"[*(\[]*([A-Za-z])(?:[*)\].:]+(?:\s.*)?)?", re.DOTALL)


class ChoiceTask:
    r"""Takes the letter in the last box, else the last one stated ("the answer is B"), else a lone last line."""

    name = "choice"

    @property
    def prompts(self) -> PromptTemplates:
        """Ask for a boxed letter."""
        return CHOICE

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Right where the letters are the same."""
        letter = chosen_letter(completion_text)
        if letter is None:
            return Verdict(False, "no answer")
        return Verdict(letter == reference_letter(problem.answer), letter)

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One after the other."""
        return [self.verify(problem, text) for problem, text in pairs]


def chosen_letter(text: str) -> str | None:
    """The letter that a text settles on, as a capital."""
    if "\\boxed" in text:
        inside = _WRAPPED.sub(r"\1", last_boxed(text) or "").strip()
        found = _BOXED_LETTER.fullmatch(inside)
        return found.group(1).upper() if found else None
    stated = [match.group(1) for match in _STATED.finditer(text) if match.group(1).isupper()]
    if stated:
        return stated[-1]
    last_line = text.strip().rpartition("\n")[2].strip()
    alone = _ALONE.fullmatch(last_line)
    return alone.group(1) if alone else None


def reference_letter(text: str) -> str | None:
    """The letter that a reference answer names, as a capital: "b", "B. green" and "(B) green" are B too."""
    named = None if "\\boxed" in text else _NAMED.fullmatch(text.strip())
    return named.group(1).upper() if named else chosen_letter(text)
