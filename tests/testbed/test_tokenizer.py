"""The tokenizer is exact, lossless and the same as what training used."""

from __future__ import annotations

import dataclasses
import random

import pytest
from transformers import PreTrainedTokenizerFast

from testbed import task
from testbed.examples import draw_batch
from testbed.recipes import RECIPES
from testbed.tokenizer import (
    END_ID,
    PADDED_VOCABULARY,
    PROMPTS,
    TOKEN_IDS,
    build_tokenizer,
    encode,
    encode_prompt,
)
from trd_data.templates import fill

PROBLEM = "29+2*9#8+2*9"
ATTEMPT = "31*9#8+2*9;79#8+2*9;wait;31*9#8+2*9\n\\boxed{02}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_a_completion_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode(ATTEMPT)
    assert tokenizer.decode(ids) == ATTEMPT
    assert tokenizer.decode([*ids, END_ID], skip_special_tokens=True) == ATTEMPT
    assert tokenizer.batch_decode([ids]) == [ATTEMPT]
    assert "".join(tokenizer.decode([token]) for token in ids) == ATTEMPT


def test_tokens_concatenate(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode(ATTEMPT)
    for cut in range(len(ids) + 1):
        first, second = tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:])
        assert tokenizer.encode(first) + tokenizer.encode(second) == ids


def test_wait_and_the_box_are_one_token_each(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer.encode("wait")) == len(tokenizer.encode("\\boxed{")) == 1
    assert len(tokenizer) <= PADDED_VOCABULARY


def test_a_foreign_character_is_unknown(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.encode("1 2") == [
        TOKEN_IDS["1"],
        tokenizer.unk_token_id,
        TOKEN_IDS["2"],
    ]
    with pytest.raises(KeyError):
        encode("1 2")


@pytest.mark.parametrize("name", ["solve", "privileged", "refine", "privileged_refine"])
def test_prompts_are_known_symbols_and_the_tokens_of_training(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    content = fill(
        PROMPTS[name],
        problem=PROBLEM,
        solution=task.reference(PROBLEM),
        attempt=ATTEMPT + PROMPTS["truncation_notice"],
    )
    message = {"role": "user", "content": content}
    ids = tokenizer.apply_chat_template([message], add_generation_prompt=True)["input_ids"]
    assert ids == encode_prompt(content)
    assert tokenizer.unk_token_id not in ids
    answered = tokenizer.apply_chat_template([message, {"role": "assistant", "content": ATTEMPT}])
    assert answered["input_ids"] == [*ids, *encode(ATTEMPT), END_ID]


def test_other_roles_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="user and assistant only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "1"}])


@pytest.mark.parametrize("name", list(RECIPES))
def test_training_examples_are_text_of_the_tokenizer(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    for step in (0, 100):
        for example in draw_batch(dataclasses.replace(RECIPES[name], steps=100), 0, step):
            text = tokenizer.decode(example.token_ids)
            assert tokenizer.encode(text) == example.token_ids
            assert tokenizer.unk_token_id not in example.token_ids
            assert example.token_ids[-1] == END_ID


@pytest.mark.parametrize("name", list(RECIPES))
def test_training_sees_the_train_split_only(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    rng = random.Random(0)
    for _ in range(20):
        for example in draw_batch(RECIPES[name], rng.randrange(9), rng.randrange(5000)):
            prompt = tokenizer.decode(example.token_ids).partition("<user>")[2]
            problem = prompt.partition("<assistant>")[0].partition("A")[0].partition("R")[0]
            assert task.split_of(problem) == "train"
