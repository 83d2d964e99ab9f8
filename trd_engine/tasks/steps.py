r"""Where a worked solution first goes wrong, told by its steps.

Two ways to tell, neither of which guesses: by a reference that shows the one right way, a step a line
(`check_by_reference`), and by the arithmetic that a text itself claims (`trd_engine.tasks.math.equalities`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trd_engine.tasks.onsets import is_onset

_STEP = re.compile(r"[^\n;|]+")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class StepCheck:
    """The steps of a completion, and the first wrong one."""

    starts: tuple[int, ...]
    """Offsets in characters, rising, one a step."""
    first_wrong: int | None
    """Index into `starts`; None where no step is wrong."""


def check_by_reference(solution: str, text: str) -> StepCheck | None:
    r"""Steps are held against the reference's, in their order; None where the reference has no two steps.

    A step is what stands between line ends, ``;`` or ``|``; space does not count. After a step that is only a
    word of doubt (``wait``) the solver may go on from any right step. What follows the reference's last step is
    not judged, nor is a last step that is right as far as it goes: it was cut off.
    """
    right = [_squeezed(step.group()) for step in _STEP.finditer(solution) if step.group().strip()]
    if len(right) < 2:
        return None
    found = [step for step in _STEP.finditer(text) if step.group().strip()]
    starts = tuple(step.start() + len(step.group()) - len(step.group().lstrip()) for step in found)
    return StepCheck(starts, _first_departure(right, [_squeezed(step.group()) for step in found]))


def _first_departure(right: list[str], steps: list[str]) -> int | None:
    expected, may_go_back = 0, False
    for index, step in enumerate(steps):
        if expected == len(right):
            return None
        if is_onset(step):
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
