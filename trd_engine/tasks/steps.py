r"""Find the first wrong step of a worked solution.

There are two ways, and neither guesses: compare with a reference that shows the one right way, a step a line
(`check_by_reference`), or recompute the arithmetic of the text itself (`trd_engine.tasks.math.equalities`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ONSET_WORDS = (
    "Wait", "wait", "Actually", "However", "Hmm", "But", "Alternatively", "Hold", "Oops", "Sorry", "Maybe", "Perhaps",
    "Instead", "Though", "Yet", "Rather", "No",
)  # fmt: skip
"""Epistemic onsets: words with which a solver leaves the path that it is on. Models that write line by line without
prose say lower-case `wait`. Phrases such as "Let me check" are left out: their first token begins ordinary steps."""
_ONSETS = {word.lower() for word in _ONSET_WORDS}
STEP = re.compile(r"[^\n;|]+")
"""A step: the text between line ends, ``;`` or ``|``."""
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class StepCheck:
    """The steps of a completion, and the first wrong one."""

    starts: tuple[int, ...]
    """Offset of each step in characters, ascending."""
    first_wrong: int | None
    """Index into `starts`; None if no step is wrong."""


def check_by_reference(solution: str, text: str) -> StepCheck | None:
    r"""Compare the steps with the reference's, in their order; None if the reference has fewer than two steps.

    Space does not count. After a step that is only a word of doubt (``wait``) the solver may continue from any right
    step. Whatever follows the reference's last step is not judged, nor is a last step that is the beginning of the
    right one: it was cut off.
    """
    right = [_squeezed(step.group()) for step in STEP.finditer(solution) if step.group().strip()]
    if len(right) < 2:
        return None
    found = [step for step in STEP.finditer(text) if step.group().strip()]
    starts = tuple(step.start() + len(step.group()) - len(step.group().lstrip()) for step in found)
    return StepCheck(starts, _first_departure(right, [_squeezed(step.group()) for step in found]))


def _first_departure(right: list[str], steps: list[str]) -> int | None:
    expected, may_go_back = 0, False
    for index, step in enumerate(steps):
        if expected == len(right):
            return None
        if step.strip().rstrip(".,!…").lower() in _ONSETS:
            may_go_back = True
        elif step == right[expected]:
            expected, may_go_back = expected + 1, False
        elif may_go_back and step in right:
            expected, may_go_back = right.index(step) + 1, False
        elif index == len(steps) - 1 and right[expected].startswith(step):
            return None
        else:
            return index
    return None


def _squeezed(step: str) -> str:
    return _SPACE.sub("", step)


def epistemic_onsets(task: str) -> tuple[str, ...]:
    """Return the words whose first token, at the start of a word, begins a correction. The diagnosis maps them to ids.

    "No" and "Yet" are left out for `choice`, since they are ordinary words of the options.
    """
    return tuple(word for word in _ONSET_WORDS if word not in ("No", "Yet")) if task == "choice" else _ONSET_WORDS
