"""The student's ids of tokens that a server returns as bytes.

An OpenAI-compatible answer has the bytes of each of its tokens but no ids. Bytes that belong to no token of the
student, or to several, have no id: nothing is guessed.

Shapes: T tokens of a completion, K scored tokens at each.
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
"""Stands for an incomplete character in the text of a single token, whose bytes are then lost."""
_PLAIN_DECODERS = frozenset({"Fuse", "Strip", "Replace", "ByteFallback", "Metaspace", "Sequence"})
"""Parts of a tokenizer's decoder that keep each token's bytes, except for the marks that `_bytes_of` handles."""


class NotOneForOneError(ValueError):
    """A server's tokens do not map one to one to the student's; the message says at which token."""


class Spelling:
    """Index of the student's tokens by their bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._ids: dict[bytes, list[int]] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else {"type": "unknown"}
        parts = [] if decoder is None else [decoder, *decoder.get("decoders", [])]
        decoders = frozenset(part["type"] for part in parts)
        added = set(tokenizer.get_added_vocab())
        for token, token_id in tokenizer.get_vocab().items():
            token_bytes = token.encode() if token in added else _bytes_of(token, decoders)
            if token_bytes is not None:
                self._ids.setdefault(token_bytes, []).append(token_id)

    def id_of(self, entry: Mapping[str, Any]) -> int | None:
        """Return the only token with the entry's bytes; None if there is none or more than one."""
        text, returned = entry["token"], entry.get("bytes")
        if _REPLACEMENT in text:
            return None
        ids = self._ids.get(text.encode("utf-8", "replace") if returned is None else bytes(returned), [])
        return ids[0] if len(ids) == 1 else None


def read_scores(
    content: Any, completion: Sequence[int], spelling: Spelling, top_k: int, *, end_of_turn_ids: Sequence[int]
) -> TokenScores:
    """Read the scores of a completion's tokens from the answer's `logprobs.content`.

    A token is unscored if not all its `top_k` alternatives are tokens of the student, or if it is an end of turn that
    the server leaves out. Raises `NotOneForOneError` if the answer's tokens are not those of `completion`.
    """
    if not isinstance(content, list):
        raise NotOneForOneError("the answer has no log-probabilities")
    ids = [spelling.id_of(entry) for entry in content]
    pairs = zip(ids, completion, strict=False)
    num_equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(completion)))
    is_end_missing = num_equal == len(completion) - 1 and completion[-1] in end_of_turn_ids
    if num_equal < len(completion) and not is_end_missing:
        there = repr(content[num_equal]["token"]) if num_equal < len(content) else "missing"
        raise NotOneForOneError(
            f"the answer's token number {num_equal} is {there}, which is not the token that the student's tokenizer "
            "makes of the text"
        )
    scores = TokenScores.unscored(completion, top_k)
    rows = {place: _row(entry, spelling, top_k) for place, entry in enumerate(content[:num_equal])}
    scored = {
        place: row for place, row in rows.items() if row is not None and math.isfinite(float(content[place]["logprob"]))
    }
    if scored:
        places = torch.tensor(list(scored))
        scores.token_ids_TK[places] = torch.tensor([[token_id for token_id, _ in row] for row in scored.values()])
        scores.logprobs_TK[places] = torch.tensor([[logprob for _, logprob in row] for row in scored.values()])
        scores.target_logprobs_T[places] = torch.tensor([float(content[place]["logprob"]) for place in scored])
    return scores


def _row(entry: Mapping[str, Any], spelling: Spelling, top_k: int) -> list[tuple[int, float]] | None:
    """Return the alternatives at one token, most likely first; None if fewer than `top_k` are the student's tokens."""
    known: dict[int, float] = {}
    for alternative in entry.get("top_logprobs") or []:
        token_id, logprob = spelling.id_of(alternative), float(alternative["logprob"])
        if token_id is not None and math.isfinite(logprob):  # −inf: the server masks it when sampling
            known.setdefault(token_id, logprob)
    return sorted(known.items(), key=lambda pair: -pair[1])[:top_k] if len(known) >= top_k else None


def _bytes_of(token: str, decoders: frozenset[str]) -> bytes | None:
    """Return the bytes of a token of the vocabulary; None if the tokenizer's tokens have no fixed bytes."""
    if "ByteLevel" in decoders:
        return bytes(_BYTE_OF[letter] for letter in token) if all(letter in _BYTE_OF for letter in token) else None
    if not decoders <= _PLAIN_DECODERS:
        return None
    if "ByteFallback" in decoders and len(token) == 6 and token.startswith("<0x"):
        return bytes.fromhex(token[3:5])
    has_marked_spaces = bool(decoders & {"Metaspace", "ByteFallback"})
    return (token.replace("\u2581", " ") if has_marked_spaces else token).encode()


def _letters_of_bytes() -> dict[str, int]:
    """Map byte-level BPE's letters to bytes: printable bytes are themselves, the others are letters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _letters_of_bytes()
