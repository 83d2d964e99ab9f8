"""Spelled tokens as the student's ids: byte-level and sentencepiece-like vocabularies, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trd_engine.teachers.endpoint.token_spelling import NotOneForOneError, Spelling, read_scores

END = 0


def byte_level() -> PreTrainedTokenizerBase:
    """Make a tokenizer of words and an emoji's four bytes in two tokens, like Qwen's and Llama 3's."""
    pieces = ["<end>", "a", "Ġa", "é", "ðŁ", "ĻĤ", "Ċ", "b", "Ã©"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def pieces() -> PreTrainedTokenizerBase:
    """Make a tokenizer with marked spaces and byte tokens, like Llama 2's and Gemma's."""
    vocabulary = ["<end>", "▁a", "a", "<0x61>", "<0xF0>", "▁b"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def entry(token: str, raw_bytes: bytes | None = None, logprob: float = -0.5) -> dict[str, Any]:
    return {"token": token, "bytes": None if raw_bytes is None else list(raw_bytes), "logprob": logprob}


def position(token: str, *others: str, raw_bytes: bytes | None = None) -> dict[str, Any]:
    best = [entry(token, raw_bytes), *(entry(other, logprob=-2.0 - i) for i, other in enumerate(others))]
    return {**best[0], "top_logprobs": best}


def test_bytes_name_one_token_of_a_byte_level_vocabulary() -> None:
    spelling = Spelling(byte_level())
    found = [spelling.id_of(e) for e in (entry(" a"), entry("a"), entry("\n"), entry("é"), entry("<end>"))]
    assert found == [2, 1, 6, 8, END]
    # the halves of a character: given as bytes they are tokens, as text alone their bytes are lost
    assert spelling.id_of(entry("\\xf0\\x9f", b"\xf0\x9f")) == 4
    assert spelling.id_of(entry("\ufffd", "\ufffd".encode())) is None
    assert spelling.id_of(entry("ab")) is None


def test_a_spelling_that_several_tokens_share_names_none() -> None:
    spelling = Spelling(pieces())
    assert spelling.id_of(entry(" a")) == 1
    assert spelling.id_of(entry("a")) is None  # a piece, and a byte
    assert spelling.id_of(entry("x", b"\xf0")) == 4


def test_scores_are_in_the_order_of_their_likelihood() -> None:
    content = [position("a", "b", " a"), position(" a", "a", "b")]
    scores = read_scores(content, (1, 2, END), Spelling(byte_level()), 2, end_of_turn_ids=(END,))
    assert scores.token_ids_TK.tolist() == [[1, 7], [2, 1], [END, END]]
    assert scores.logprobs_TK[:2].tolist() == [[-0.5, -2.0], [-0.5, -2.0]]
    assert scores.target_logprobs_T[:2].tolist() == [-0.5, -0.5]
    assert scores.is_scored.tolist() == [True, True, False]  # of the end of turn nothing was scored
    with_end = read_scores(
        [*content, position("<end>", "a")], (1, 2, END), Spelling(byte_level()), 2, end_of_turn_ids=(0,)
    )
    assert with_end.is_scored.all()


def test_a_token_with_an_alternative_that_the_student_lacks_is_unscored() -> None:
    content = [position("a", "b", " a"), position("b", "a", "unheard-of"), position("b", "a")]
    scores = read_scores(content, (1, 7, 7), Spelling(byte_level()), 3, end_of_turn_ids=(END,))
    assert scores.is_scored.tolist() == [True, False, False]
    assert math.isnan(scores.logprobs_TK[1, 0])


def test_an_answer_that_is_cut_keeps_the_scores_of_what_is_left() -> None:
    content = [position("a", "b"), position("b", "a"), position("a", "b")]
    assert (
        read_scores(content, (1, 7), Spelling(byte_level()), 2, end_of_turn_ids=(END,)).is_scored.tolist() == [True] * 2
    )


@pytest.mark.parametrize(
    ("content", "completion", "words"),
    [
        (None, (1,), "has no log-probabilities"),
        ([position("ab", "a")], (1, 7), "token number 0 is 'ab'"),
        ([position("a", "b"), position("\ufffd", "a")], (1, 4), "token number 1 is"),
        ([position("a", "b")], (1, 7), "token number 1 is missing"),
        ([position("a", "b"), position("a", "b")], (1, 7), "token number 1 is 'a'"),
    ],
    ids=["none", "merged", "half a character", "too few", "another"],
)
def test_other_tokens_than_the_completions_are_refused(content: Any, completion: tuple[int, ...], words: str) -> None:
    with pytest.raises(NotOneForOneError, match=words):
        read_scores(content, completion, Spelling(byte_level()), 2, end_of_turn_ids=(END,))


def test_a_vocabulary_that_spells_no_bytes_names_nothing() -> None:
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    spelling = Spelling(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert spelling.id_of(entry("a")) is None


def test_a_mass_of_zero_is_unscored() -> None:
    """As of what a server masks by its own top-k; JSON of Python's has −Infinity."""
    content = [position("a", "b"), position("b", "a")]
    content[0]["top_logprobs"][1]["logprob"] = -math.inf
    content[1]["logprob"] = math.nan
    scores = read_scores(content, (1, 7), Spelling(byte_level()), 2, end_of_turn_ids=(END,))
    assert scores.is_scored.tolist() == [False, False]
