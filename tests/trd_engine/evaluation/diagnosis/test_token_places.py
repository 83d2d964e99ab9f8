"""Which token writes which character, for tokenizers that split characters and those that strip spaces."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.trd_engine.tiny_runs import MODELS
from trd_engine.evaluation.diagnosis.token_places import epistemic_token_ids, token_at, token_ends


def bytes_alone() -> PreTrainedTokenizerBase:
    """Make a tokenizer of single bytes: every character outside ASCII takes several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def words_with_spaces() -> PreTrainedTokenizerBase:
    """Make a tokenizer whose decoder drops the first word's space, whatever it is part of."""
    vocabulary = {"<unk>": 0, "▁so": 1, "▁wait": 2, "a": 3, "<end>": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


def test_a_character_of_several_tokens_is_written_by_its_last() -> None:
    tokenizer, text = bytes_alone(), "aé🙂b"
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    ends = token_ends(tokenizer, ids, text)
    assert ends == [1, 1, 2, 2, 2, 2, 3, 4, 4]
    assert [token_at(ends, character) for character in range(4)] == [0, 2, 6, 7]


def test_a_sampled_replacement_character_and_broken_bytes_end_in_the_decoded_text() -> None:
    tokenizer = bytes_alone()
    whole = tokenizer.encode("x\N{REPLACEMENT CHARACTER}y", add_special_tokens=False)
    assert token_ends(tokenizer, whole, "x\N{REPLACEMENT CHARACTER}y") == [1, 1, 1, 1, 3]
    broken = tokenizer.encode("xé", add_special_tokens=False)[:-1]
    assert token_ends(tokenizer, broken, tokenizer.decode(broken)) == [1, 2]


def test_spaces_hang_on_what_stands_before() -> None:
    tokenizer, ids = words_with_spaces(), [1, 2, 3, 2, 4]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == "so waita wait"
    assert token_ends(tokenizer, ids, text) == [2, 7, 8, 13, 13]


def test_a_text_that_the_ids_do_not_give_is_not_placed() -> None:
    tokenizer = bytes_alone()
    assert token_ends(tokenizer, tokenizer.encode("abc", add_special_tokens=False), "abcd") is None
    assert token_ends(tokenizer, [], "") == []


@pytest.mark.parametrize("text", ["95*3-2;85-2;wait;95*3-2;85-2;83;\\boxed{83}"])
def test_the_testbeds_lines(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tiny-student")
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    ends = token_ends(tokenizer, ids, text)
    assert ends is not None
    for character in (0, text.index("wait"), text.index("\\boxed")):
        place = token_at(ends, character)
        assert tokenizer.decode(ids[:place]) == text[:character]
    (onset,) = epistemic_token_ids(tokenizer, ("wait",))
    assert ids[token_at(ends, text.index("wait"))] == onset
