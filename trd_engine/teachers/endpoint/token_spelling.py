"""Tokens that a server spells out, as the student's ids: one for one, or not at all.

An OpenAI-compatible answer spells each of its tokens in bytes and tells no ids. A spelling that is no token of the
student's, or that several share, says nothing of the student's vocabulary, and nothing is guessed.

Shapes: T tokens of a completion, K told at each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trd_engine.types import TokenScores

_REPLACEMENT = "\ufffd"
"""What stands for a part of a character where a server makes text of one token alone: its bytes are lost."""
_PLAIN_DECODERS = frozenset({"Fuse", "Strip", "Replace", "ByteFallback", "Metaspace", "Sequence"})
"""Parts of a tokenizer's decoder that leave a token its own spelling, but for the marks of `_spelled`."""


class NotOneForOneError(ValueError):
    """The tokens that a server told are not the student's tokens one for one; the message says where."""


class Spelling:
    """The student's tokens by their bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._ids: dict[bytes, list[int]] = {}
        decoders = _decoders(tokenizer)
        added = set(tokenizer.get_added_vocab())
        for token, token_id in tokenizer.get_vocab().items():
            spelled = token.encode() if token in added else _spelled(token, decoders)
            if spelled is not None:
                self._ids.setdefault(spelled, []).append(token_id)

    def id_of(self, entry: Mapping[str, Any]) -> int | None:
        """The one token that is spelled as the entry says; None where there is none, or more than one."""
        text, told = entry["token"], entry.get("bytes")
        if _REPLACEMENT in text:
            return None
        ids = self._ids.get(text.encode("utf-8", "replace") if told is None else bytes(told), [])
        return ids[0] if len(ids) == 1 else None


def read_scores(
    content: Any, completion: Sequence[int], spelling: Spelling, top_k: int, *, end_of_turn_ids: Sequence[int]
) -> TokenScores:
    """Scores of a completion's tokens from the answer's own `logprobs.content`.

    A token whose `top_k` alternatives are not all the student's stays untold, and so does an end of turn that the
    server did not tell of. Raises `NotOneForOneError` where the answer's tokens are not those of `completion`.
    """
    if not isinstance(content, list):
        raise NotOneForOneError("the answer tells no log-probabilities")
    ids = [spelling.id_of(entry) for entry in content]
    num_told = _num_agreeing(ids, completion)
    is_end_missing = num_told == len(completion) - 1 and completion[-1] in end_of_turn_ids
    if num_told < len(completion) and not is_end_missing:
        there = repr(content[num_told]["token"]) if num_told < len(content) else "nothing"
        raise NotOneForOneError(
            f"the answer's token number {num_told} is {there}, and no single token of the student's that its own "
            "tokenizer makes of the text"
        )
    scores = TokenScores.unscored(completion, top_k)
    rows = {place: _row(entry, spelling, top_k) for place, entry in enumerate(content[:num_told])}
    told = {
        place: row for place, row in rows.items() if row is not None and math.isfinite(float(content[place]["logprob"]))
    }
    if told:
        places = torch.tensor(list(told))
        scores.token_ids_TK[places] = torch.tensor([[token_id for token_id, _ in row] for row in told.values()])
        scores.logprobs_TK[places] = torch.tensor([[logprob for _, logprob in row] for row in told.values()])
        scores.target_logprobs_T[places] = torch.tensor([float(content[place]["logprob"]) for place in told])
    return scores


def _row(entry: Mapping[str, Any], spelling: Spelling, top_k: int) -> list[tuple[int, float]] | None:
    """The alternatives at one token, the likeliest first; None where they are fewer than asked, or not all known."""
    known: dict[int, float] = {}
    for alternative in entry.get("top_logprobs") or []:
        token_id, logprob = spelling.id_of(alternative), float(alternative["logprob"])
        if token_id is not None and math.isfinite(logprob):  # −inf: the server masks what it samples from
            known.setdefault(token_id, logprob)
    return sorted(known.items(), key=lambda pair: -pair[1])[:top_k] if len(known) >= top_k else None


def _num_agreeing(told: Sequence[int | None], completion: Sequence[int]) -> int:
    pairs = zip(told, completion, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(told), len(completion)))


def _decoders(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The kinds of decoder that make text of tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else {"type": "unknown"}
    parts = [] if decoder is None else [decoder, *decoder.get("decoders", [])]
    return frozenset(part["type"] for part in parts)


def _spelled(token: str, decoders: frozenset[str]) -> bytes | None:
    """The bytes of a token of the vocabulary; None where its kind of tokenizer gives a token none of its own."""
    if "ByteLevel" in decoders:
        return bytes(_BYTE_OF[letter] for letter in token) if all(letter in _BYTE_OF for letter in token) else None
    if not decoders <= _PLAIN_DECODERS:
        return None
    if "ByteFallback" in decoders and len(token) == 6 and token.startswith("<0x"):
        return bytes.fromhex(token[3:5])
    has_marked_spaces = bool(decoders & {"Metaspace", "ByteFallback"})
    return (token.replace("\u2581", " ") if has_marked_spaces else token).encode()


def _letters_of_bytes() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte: the printable ones as they are, the others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _letters_of_bytes()
