"""Check that two tokenizers agree token for token: distillation compares distributions over the same ids.

Compared are the vocabularies, the rules that split and merge text, the added tokens, and the ids of sample texts. The
sizes of the models' heads may differ: padding is no token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trd_engine.runtime.errors import TokenizerMismatchError

SAMPLE_TEXTS = (
    "Let x = 3.14159; then 2x + 7 = 13.28318, and 1,234,567 < 10^7.",
    "  def f(a, b):\n\treturn a**2 - b // 3  # comment\n\n\n",
    "Hmm, wait: don't “quote” it… naïve café — straße, ½ + ¼ = ¾.",
    "Решите уравнение. 解方程。 方程式を解け。 حل المعادلة 🙂👩‍🔬",
    "\\boxed{\\frac{1}{2}} $$\\sum_{i=1}^{n} i^2$$ <b>&amp;</b>",
    "12+3*2-4#4",
)
"""Numbers, indentation, contractions, accents, other scripts, LaTeX and markup: where families of tokenizers part."""
_SHOWN_IDS = 12


def require_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise `TokenizerMismatchError`, saying where they differ, unless both give every text the same ids."""
    _require_same_vocabulary(student.get_vocab(), teacher.get_vocab())
    ours, theirs = _rules(student), _rules(teacher)
    for part in ours.keys() | theirs.keys():
        if ours.get(part) != theirs.get(part):
            raise TokenizerMismatchError(
                f"the vocabularies agree, but the rules that split and merge text do not: {part} of the student's "
                f"tokenizer is {ours.get(part)!r:.200} and of the teacher's {theirs.get(part)!r:.200}; "
                "choose a teacher of the same family"
            )
    for text in SAMPLE_TEXTS:
        require_same_ids(text, _encode(student, text), _encode(teacher, text), teacher="the teacher")


def require_same_ids(text: str, ours: Sequence[int], theirs: Sequence[int], *, teacher: str) -> None:
    """Raise `TokenizerMismatchError` with the first difference, unless both made the same ids of `text`."""
    if list(ours) == list(theirs):
        return
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = slice(place, place + _SHOWN_IDS)
    raise TokenizerMismatchError(
        f"the tokenizers of student and teacher split {text!r} differently: from token {place} on, the student's gives "
        f"{list(ours[shown])} and that of {teacher} {list(theirs[shown])}; choose a teacher of the same family"
    )


def require_same_end_of_turn(student_ids: Sequence[int], teacher_ids: Sequence[int], names: Sequence[str]) -> None:
    """Raise `TokenizerMismatchError` if the teacher may end its turn with a token that does not end the student's.

    A student that is trained on it would learn it and continue after it. `names` are the spellings of `teacher_ids`.
    """
    for token_id, name in zip(teacher_ids, names, strict=True):
        if token_id not in student_ids:
            raise TokenizerMismatchError(
                f"the teacher ends its turn with {name!r} ({token_id}), which does not end the student's; add it to "
                "eos_token_id in the student's generation_config.json, or choose a teacher of the same family"
            )


def _require_same_vocabulary(ours: dict[str, int], theirs: dict[str, int]) -> None:
    for token, token_id in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != token_id:
            there = theirs.get(token, "absent")
            raise TokenizerMismatchError(
                f"token {token!r} is {token_id} in the student's tokenizer and {there} in the teacher's; "
                "choose a teacher of the same family"
            )
    if len(theirs) > len(ours):
        surplus = min(set(theirs) - set(ours), key=theirs.__getitem__)
        raise TokenizerMismatchError(
            f"token {surplus!r} of the teacher's tokenizer is absent in the student's; "
            "choose a teacher of the same family"
        )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return, by part, what besides the vocabulary decides the ids of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"class": type(tokenizer).__name__}
    document = json.loads(backend.to_str())
    model = document["model"]
    if isinstance(model.get("vocab"), dict):  # a list is Unigram's, whose scores decide how text is split
        model = {name: value for name, value in model.items() if name != "vocab"}
    rules = {f"model.{name}": value for name, value in model.items()}
    added = {entry.pop("content"): entry for entry in document.get("added_tokens", [])}
    return rules | {
        "normalizer": document.get("normalizer"),
        "pre_tokenizer": document.get("pre_tokenizer"),
        "added_tokens": added,
    }
