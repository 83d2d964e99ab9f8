"""Epistemic onsets: words with which a solver breaks out of the path it is on."""

from __future__ import annotations

_WORDS = (
    "Wait",
    "wait",
    "Actually",
    "However",
    "Hmm",
    "But",
    "Alternatively",
    "Hold",
    "Oops",
    "Sorry",
    "Maybe",
    "Perhaps",
    "Instead",
    "Though",
    "Yet",
    "Rather",
    "No",
)
"""Phrases such as "Let me check" are left out: their first token opens ordinary steps too."""


def epistemic_onsets(task: str) -> tuple[str, ...]:
    """Words whose first token, at the start of a word, opens a correction. The diagnosis maps them to ids.

    Lower-case `wait` is the one of models that write line by line without prose. In `choice`, "No" and
    "Yet" go: they are ordinary words of the options.
    """
    return tuple(word for word in _WORDS if word not in ("No", "Yet")) if task == "choice" else _WORDS


_LOWER = {word.lower() for word in _WORDS}


def is_onset(text: str) -> bool:
    """True where `text` is one of the words and nothing else, whatever its case and the marks after it."""
    return text.strip().rstrip(".,!…").lower() in _LOWER
