r"""Find the final answer of a solution: the content of its last ``\boxed{}``."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\f?boxed\s*(?=\{)|\\boxed[ \t]+(?=[^\s{])")
_FRAMED = re.compile(r"\\fbox\s*(?=\{)")
"""A few solutions of MATH use this instead."""
_BARE_CONTENT = re.compile(r"[^\s$]+")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{}``, with balanced braces, or of a bare ``\boxed 5``; without
    any, of the last ``\fbox{}``.

    None if there is no box or the last one is not closed: a solution that is cut off in its answer has none.
    """
    boxes = list(_BOX.finditer(text)) or list(_FRAMED.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start] == "{":
        return _balanced(text, start)
    bare = _BARE_CONTENT.match(text, start)
    return bare.group().rstrip(".,;") if bare else None


def _balanced(text: str, start: int) -> str | None:
    r"""Return the inside of the group that opens at `start`; ``\{`` and ``\}`` are characters, not braces."""
    depth = 0
    place = start
    while place < len(text):
        character = text[place]
        if character == "\\":
            place += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : place].strip()
        place += 1
    return None
