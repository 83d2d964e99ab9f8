"""Guesses from a column's name whether it holds a part of a problem."""

from __future__ import annotations

import re
from functools import lru_cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PARTS = _words("""
    input inputs context contexts ctx passage passages paragraph paragraphs article story document documents doc docs
    image images img picture pictures figure figures diagram diagrams photo audio video caption table tables chart
    hint hints starter background premise premises hypothesis body description scenario facts evidence support
    knowledge constraints conditions assumptions definitions system instruction instructions question problem prompt
    query statement dialogue dialog history schema signature declaration sentence sentences text choices options
    tools functions
""")
_IMAGES = _words("image images img picture pictures figure figures diagram diagrams photo audio video")
_DETAILS = _words("text content contents data code body url path base64 bytes html md markdown en info")
"""Words that may follow, as numbers may, and change nothing."""
_OTHERS = _words("""
    answer answers solution solutions output outputs response responses completion completions generation generations
    generated prediction predictions predicted pred model models cot thinking thought thoughts reasoning rationale
    rationales explanation explanations exp proof proofs comment comments feedback critique rubric grade judge trace
    trajectory trajectories attempt draft metadata meta extra source sources src origin license citation author
    authors title name subject topic topics category domain type types level difficulty tag tags skill skills keyword
    keywords date time version split lang language id ids uuid hash index idx canary note notes remark remarks original
    orig raw revised rewritten paraphrased previous old seed synthetic translated translation correct incorrect wrong
    chosen rejected reference references url link score rate num count length len size width height tokens is has
    quality zh cn fr de es ja ko ru ar hi pt
""")
"""Words of columns that hold answers or facts about the row."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")


@lru_cache(maxsize=1000)
def part_of_problem(name: str) -> bool | None:
    """Return whether a column of this name holds a part of a problem; None if its name does not tell."""
    words = _telling_words(name)
    if any(word in _OTHERS for word in words):
        return False
    return True if words and words[-1] in _PARTS else None


def holds_image(name: str) -> bool:
    """Return whether a column of this name holds images, sounds or films, or their addresses."""
    return any(word in _IMAGES for word in _telling_words(name))


def _telling_words(name: str) -> list[str]:
    words = [word.lower() for word in _WORD.findall(name[:200])]
    while len(words) > 1 and (words[-1] in _DETAILS or words[-1].isdigit()):
        words.pop()
    return words
