"""Where two texts part: the same words plain, what only one of them has in its colour."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from rich.text import Text

_WORDS = re.compile(r"\w+|\s+|.", re.DOTALL)

GONE = "red"
NEW = "green"


def side_by_side(left: str, right: str) -> tuple[Text, Text]:
    """Both texts; what `right` lacks is red in `left`, what it has anew is green in `right`."""
    left_words, right_words = _WORDS.findall(left), _WORDS.findall(right)
    left_text, right_text = Text(), Text()
    for tag, i, j, k, m in SequenceMatcher(None, left_words, right_words).get_opcodes():
        is_same = tag == "equal"
        left_text.append("".join(left_words[i:j]), style="default" if is_same else GONE)
        right_text.append("".join(right_words[k:m]), style="default" if is_same else NEW)
    return left_text, right_text
