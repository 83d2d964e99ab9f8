"""Small random models with a tokenizer whose text does not encode back to its ids, and requests for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trd_engine.types import Completion, GenerationRequest, SamplingSettings

STOP_ID = 1
MAX_MODEL_LEN = 192
LORA_RANK = 4
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SAMPLED = SamplingSettings(temperature=0.8, top_p=0.95, top_k=20, max_new_tokens=40, stop_token_ids=(STOP_ID,))
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=-1, max_new_tokens=40, stop_token_ids=(STOP_ID,))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of 64 ids: two special ones, the letters, and merged pairs, so that "ab" is one id or two."""
    letters = [chr(ord("a") + i) for i in range(26)]
    pairs = [(letters[i], letters[i + 1]) for i in range(0, 24, 2)] + [(letters[i], letters[i]) for i in range(24)]
    words = ["<pad>", "<end>", *letters, *(first + second for first, second in pairs)]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def make_model(seed: int) -> Qwen3ForCausalLM:
    """Make a random model sure enough of itself that a rounding error seldom changes its best token."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_MODEL_LEN,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=STOP_ID,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def write_model(folder: Path, seed: int) -> Path:
    make_model(seed).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def load_model(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    return model


def make_requests(num: int = 24) -> list[GenerationRequest]:
    """Make prompts of 3 to 9 ids, spelled in split pairs: no tokenizer would write them so."""
    return [GenerationRequest((2 + i % 20, 3 + i % 20) + (4, 5) * (i % 4) + (6,), seed=1000 + i) for i in range(num)]


def forward_logprobs(model: torch.nn.Module, prompt: tuple[int, ...], completion: tuple[int, ...]) -> list[float]:
    """Return the log-probability of every completion id, by one plain forward pass over the very ids."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logprobs_TV = model(input_ids=ids).logits[0].log_softmax(dim=-1)
    start = len(prompt) - 1
    return [logprobs_TV[start + i, token].item() for i, token in enumerate(completion)]


def assert_sampled_by(model: torch.nn.Module, requests: list[GenerationRequest], completions: list[Completion]) -> None:
    """Assert that every logprob is the model's own, for the very ids."""
    for request, completion in zip(requests, completions, strict=True):
        expected = forward_logprobs(model, request.prompt_token_ids, completion.token_ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def write_adapter(model_folder: Path, folder: Path, seed: int, targets: list[str] = LORA_TARGETS) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(
        r=LORA_RANK, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(load_model(model_folder), config).save_pretrained(str(folder))
    return folder


def ids(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def encoded_again(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[int, ...]:
    """Decode the ids and encode the text again."""
    text = tokenizer.decode(list(token_ids))
    assert isinstance(text, str)
    return tuple(tokenizer.encode(text))
