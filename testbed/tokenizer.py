"""The character-level tokenizer, the chat template and the prompt templates of all small models.

Owns the vocabulary. Every model folder carries the same files, so that a student and its
teacher agree token for token. Special tokens never occur in the text of a problem, an
attempt or a solution; ``wait`` and ``\\boxed{`` are one token each, everything else is a character.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT, UNKNOWN = "<pad>", "<end>", "<user>", "<assistant>", "<unk>"
REFERENCE_MARK, ATTEMPT_MARK, TRUNCATED_MARK = "R", "A", "~"

SYMBOLS = (
    PAD,
    END,
    USER,
    ASSISTANT,
    *"0123456789",
    *"+-*#",
    *"\n;|",
    "\\boxed{",
    "}",
    "wait",
    REFERENCE_MARK,
    ATTEMPT_MARK,
    TRUNCATED_MARK,
)
TOKEN_IDS = {symbol: index for index, symbol in enumerate((*SYMBOLS, UNKNOWN))}
PADDED_VOCABULARY = 32
"""Rows of the embedding: a round number, for kernels; the rows above the vocabulary are idle."""

PAD_ID, END_ID = TOKEN_IDS[PAD], TOKEN_IDS[END]
MAX_LENGTH = 1024
"""Tokens of context that the models declare."""

PROMPTS = {
    "solve": "{problem}",
    "privileged": "{problem}" + REFERENCE_MARK + "{solution}",
    "refine": "{problem}" + ATTEMPT_MARK + "{attempt}",
    "privileged_refine": "{problem}" + REFERENCE_MARK + "{solution}" + ATTEMPT_MARK + "{attempt}",
    "truncation_notice": TRUNCATED_MARK,
}
"""Contents of the user message. Filled by literal replacement: solutions contain braces."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<user>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<assistant>' + message['content'] + '<end>' -}}"
    "{%- else -%}{{- raise_exception('these models know the roles user and assistant only') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}"
)

_PIECE = re.compile(r"\\boxed\{|wait|[\s\S]")


def pieces(text: str) -> list[str]:
    """Cut a text into its tokens."""
    return _PIECE.findall(text)


def encode(text: str) -> list[int]:
    """Return the token ids of a text without special tokens; a KeyError names a foreign character.

    The same ids as the built tokenizer gives (a test compares them), without its cost
    in the training loop.
    """
    return [TOKEN_IDS[piece] for piece in pieces(text)]


def encode_prompt(content: str) -> list[int]:
    """Return the token ids of one user message with the generation prompt after it."""
    return [TOKEN_IDS[USER], *encode(content), TOKEN_IDS[ASSISTANT]]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer as an ordinary fast tokenizer, with its chat template."""
    backend = Tokenizer(models.WordLevel(TOKEN_IDS, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE.pattern), behavior="isolated")
    # Without a decoder, tokens are joined with spaces and the text would not round-trip.
    backend.decoder = decoders.Fuse()
    # transformers leaves this constructor untyped.
    wrap = cast(Callable[..., PreTrainedTokenizerFast], PreTrainedTokenizerFast)
    return wrap(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
