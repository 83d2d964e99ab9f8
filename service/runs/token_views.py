"""A trajectory token by token, and its two texts aligned. Pure functions of a row, for every surface.

An alignment is the longest common subsequence of both texts' tokens (of words if the tokens are unknown), from which
matches that are too short to mean anything are removed: a lone comma between two rewritten sentences is no common text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

from rapidfuzz.distance import LCSseq

from contract.tables import Trajectory
from contract.views.trajectories import AlignmentView, Alternatives, LikelyToken, Stretch, TokensView, TokenText

MAX_PRODUCT = 6 * 10**8
"""Units of one text times units of the other: the alignment takes a bit of memory for each pair, here 75 MB. Beyond it,
only the common beginning and the common end are aligned."""
MIN_MATCH_CHARACTERS = 4
"""Shortest common text between two changes."""

_WORDS = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")

Blocks = list[tuple[int, int, int]]
"""Common stretches: first unit of the one text, of the other, and the number of units."""


def tokens_view(row: Trajectory) -> TokensView | None:
    """Return what the diagnosis found of each token; None if the trajectory was not diagnosed."""
    if row.token_kl is None:
        return None
    detail: dict[str, Any] = row.token_detail or {}
    wrong = detail.get("first_wrong_step")
    return TokensView(
        rollout=_token_text(row.rollout, row.token_kl["rollout"], detail, "rollout"),
        refined=_token_text(row.refined, row.token_kl["refined"], detail, "refined")
        if row.refined is not None and row.token_kl["refined"] is not None
        else None,
        first_wrong_step=(wrong[0], wrong[1]) if wrong else None,
    )


def _token_text(text: str, kl: list[float | None], detail: dict[str, Any], side: str) -> TokenText:
    lengths = (detail.get("lengths") or {}).get(side)
    found = (detail.get("alternatives") or {}).get(side)
    return TokenText(
        tokens=None if lengths is None else _split(text, lengths),
        kl=kl,
        alternatives=None
        if found is None
        else [
            Alternatives(token=one["token"], student=_likely(one["student"]), teacher=_likely(one["teacher"]))
            for one in found
        ],
    )


def _split(text: str, lengths: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def _likely(pairs: Sequence[Sequence[Any]]) -> list[LikelyToken]:
    return [LikelyToken(text=text, probability=probability) for text, probability in pairs]


def alignment_view(row: Trajectory, tokens: TokensView | None) -> AlignmentView | None:
    """Return the alignment of rollout and refinement; None without a refinement."""
    if row.refined is None:
        return None
    left = tokens.rollout.tokens if tokens is not None else None
    right = tokens.refined.tokens if tokens is not None and tokens.refined is not None else None
    if left is None or right is None:
        left, right = _WORDS.findall(row.rollout), _WORDS.findall(row.refined)
        return AlignmentView(unit="word", rollout=left, refined=right, stretches=aligned(left, right))
    return AlignmentView(unit="token", rollout=left, refined=right, stretches=aligned(left, right))


def aligned(left: Sequence[str], right: Sequence[str]) -> list[Stretch]:
    """Return the stretches of an alignment, which go through both texts from the beginning to the end."""
    blocks = [*_long_enough(_common(left, right), left, right), (len(left), len(right), 0)]
    stretches: list[Stretch] = []
    at_left = at_right = 0
    for i, j, size in blocks:
        if i > at_left or j > at_right:
            op = "replaced" if i > at_left and j > at_right else "removed" if i > at_left else "added"
            stretches.append(Stretch(op=op, rollout=(at_left, i), refined=(at_right, j)))
        if size:
            stretches.append(Stretch(op="equal", rollout=(i, i + size), refined=(j, j + size)))
        at_left, at_right = i + size, j + size
    return stretches


def _common(left: Sequence[str], right: Sequence[str]) -> Blocks:
    if len(left) * len(right) <= MAX_PRODUCT:
        codes = LCSseq.opcodes(left, right)
        return [(c.src_start, c.dest_start, c.src_end - c.src_start) for c in codes if c.tag == "equal"]
    shorter = min(len(left), len(right))
    start = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    end = next((i for i in range(shorter - start) if left[-1 - i] != right[-1 - i]), shorter - start)
    return [(0, 0, start), (len(left) - end, len(right) - end, end)]


def _long_enough(blocks: Blocks, left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Yield the blocks that are long enough or begin or end both texts."""
    for i, j, size in blocks:
        is_edge = (i == j == 0) or (i + size == len(left) and j + size == len(right))
        if size and (is_edge or len("".join(left[i : i + size]).strip()) >= MIN_MATCH_CHARACTERS):
            yield i, j, size
