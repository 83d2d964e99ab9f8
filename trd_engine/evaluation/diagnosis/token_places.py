"""Between words and tokens: which ids open a doubt, and which token a character of a completion belongs to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for the first bytes of a character whose others are in the next token."""


def epistemic_token_ids(tokenizer: PreTrainedTokenizerBase, onsets: Sequence[str]) -> tuple[int, ...]:
    """Return the first tokens of the words that open a doubt or a correction, with and without a space before them.

    A word whose first token is only a fragment ("Al" of "Alternatively") is left out: its mass would be
    that of many other words too.
    """
    ids: set[int] = set()
    unknown = tokenizer.unk_token_id
    for onset in onsets:
        for text in (onset, " " + onset):
            encoded = tokenizer.encode(text, add_special_tokens=False)
            if len(encoded) == 1 and encoded[0] != unknown:
                ids.add(encoded[0])
    return tuple(sorted(ids))


def token_ends(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], text: str) -> list[int] | None:
    """Return, for each token, the number of characters of `text` up to its end; None if they are unknown.

    `text` is the ids decoded without special tokens. Tokens are decoded after the few before them, since spaces
    depend on neighbours, and a character of several tokens counts as written with its last one.
    """
    ends: list[int] = []
    context, done, written = 0, 0, 0
    for place in range(1, len(token_ids) + 1):
        stretches = [list(token_ids[context:end]) for end in (done, place)]
        before, after = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in stretches)
        is_last = place == len(token_ids)
        if len(after) > len(before) and (is_last or not after.endswith(_UNFINISHED)):
            written += len(after) - len(before)
            context, done = done, place
        ends.append(written)
    return ends if written == len(text) else None


def token_at(ends: Sequence[int], character: int) -> int:
    """Return the number of the token that writes the character at this offset."""
    return bisect_right(ends, character)
