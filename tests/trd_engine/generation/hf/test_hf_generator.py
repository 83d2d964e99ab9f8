"""The transformers generator: the ids that go in and come out, the borrowed model as it was, stops obeyed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.trd_engine.generation.random_models import (
    GREEDY,
    MAX_MODEL_LEN,
    SAMPLED,
    STOP_ID,
    encoded_again,
    forward_logprobs,
    ids,
    load_model,
    make_requests,
)
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.runtime.errors import ContextTooLongError, StopRequested
from trd_engine.types import Completion, GenerationProgress, GenerationRequest


def test_the_model_sees_the_prompt_ids_and_nothing_else(model_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_model(model_folder)
    seen: list[torch.Tensor] = []

    def watch(_module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"])

    model.register_forward_pre_hook(watch, with_kwargs=True)
    prompt = (2, 3, 6)
    assert encoded_again(tokenizer, prompt) != prompt
    (completion,) = TransformersGenerator(model, tokenizer).generate([GenerationRequest(prompt, 0)], SAMPLED)
    fed = tuple(torch.cat(seen, dim=1)[0].tolist())
    assert fed == prompt + completion.token_ids[:-1]


def test_completions_are_the_sampled_ids_not_text_encoded_again(
    transformers_generator: TransformersGenerator, reference_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    requests = make_requests()
    completions = transformers_generator.generate(requests, SAMPLED, with_logprobs=True)
    changed = [c for c in completions if encoded_again(tokenizer, c.token_ids) != c.token_ids]
    assert changed, "no completion would betray an encoding of its text"
    for request, completion in zip(requests, completions, strict=True):
        expected = forward_logprobs(reference_model, request.prompt_token_ids, completion.token_ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_samples_of_one_prompt_read_it_once(
    model_folder: Path, reference_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = load_model(model_folder)
    read: list[torch.Tensor] = []

    def watch(_module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.append(kwargs["input_ids"])

    model.register_forward_pre_hook(watch, with_kwargs=True)
    prompts = [(2, 3, 6, 4), (5, 3), (2, 3, 6, 4), (5, 3), (2, 3, 6, 4)]
    requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(prompts)]
    completions = TransformersGenerator(model, tokenizer).generate(requests, SAMPLED, with_logprobs=True)
    assert [tuple(ids.shape) for ids in read[:2]] == [(2, 4), (5, 1)]
    assert len({completion.token_ids for completion in completions}) > 2
    for request, completion in zip(requests, completions, strict=True):
        expected = forward_logprobs(reference_model, request.prompt_token_ids, completion.token_ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_greedy_equals_transformers_own_generate(
    transformers_generator: TransformersGenerator, reference_model: PreTrainedModel
) -> None:
    requests = make_requests(8)
    for request, completion in zip(requests, transformers_generator.generate(requests, GREEDY), strict=True):
        prompt = torch.tensor([request.prompt_token_ids])
        output = reference_model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=GREEDY.max_new_tokens
        )
        assert tuple(output[0, prompt.shape[1] :].tolist()) == completion.token_ids


def test_a_stop_token_is_part_of_the_completion_and_not_of_its_text(
    transformers_generator: TransformersGenerator, tokenizer: PreTrainedTokenizerBase
) -> None:
    completions = transformers_generator.generate(make_requests(), replace(SAMPLED, max_new_tokens=60))
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert completion.token_ids[-1] == STOP_ID
        assert STOP_ID not in completion.token_ids[:-1]
        assert completion.text == tokenizer.decode(list(completion.token_ids[:-1]))


def test_without_a_stop_token_the_length_ends_it(transformers_generator: TransformersGenerator) -> None:
    endless = replace(SAMPLED, stop_token_ids=(), max_new_tokens=17)
    completions = transformers_generator.generate(make_requests(), endless)
    assert {c.finish_reason for c in completions} == {"length"}
    assert {len(c.token_ids) for c in completions} == {17}


def test_a_sample_hangs_on_its_seed_and_not_on_its_batch(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    requests = make_requests()
    model = load_model(model_folder)
    whole = TransformersGenerator(model, tokenizer).generate(requests, SAMPLED)
    assert ids(TransformersGenerator(model, tokenizer).generate(requests, SAMPLED)) == ids(whole)
    small = TransformersGenerator(model, tokenizer, max_batch_tokens=150, max_step_tokens=8)
    assert ids(small.generate(requests, SAMPLED)) == ids(whole)
    assert ids(small.generate(requests[::-1], SAMPLED))[::-1] == ids(whole)
    reseeded = [replace(request, seed=request.seed + 1) for request in requests]
    assert ids(small.generate(reseeded, SAMPLED)) != ids(whole)


def test_the_global_random_state_is_left_alone(transformers_generator: TransformersGenerator) -> None:
    before = torch.get_rng_state()
    transformers_generator.generate(make_requests(4), SAMPLED)
    assert torch.equal(before, torch.get_rng_state())


def test_every_module_gets_its_own_mode_back(model_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_model(model_folder).train()
    frozen = model.model.layers[1]
    frozen.eval()
    before = [module.training for module in model.modules()]
    modes: list[bool] = []
    model.model.layers[0].register_forward_pre_hook(lambda module, _args: modes.append(module.training))
    TransformersGenerator(model, tokenizer).generate(make_requests(2), SAMPLED)
    assert modes
    assert not any(modes)
    assert [module.training for module in model.modules()] == before


def test_gradient_checkpointing_stands_aside_and_works_afterwards(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, transformers_generator: TransformersGenerator
) -> None:
    model = load_model(model_folder).train()
    model.gradient_checkpointing_enable()
    requests = make_requests(4)
    completions = TransformersGenerator(model, tokenizer).generate(requests, SAMPLED)
    assert ids(completions) == ids(transformers_generator.generate(requests, SAMPLED))
    assert model.is_gradient_checkpointing
    model(input_ids=torch.tensor([[2, 3, 4]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_progress_grows_to_the_whole(transformers_generator: TransformersGenerator) -> None:
    reports: list[GenerationProgress] = []
    single: dict[int, Completion] = {}
    completions = transformers_generator.generate(
        make_requests(), SAMPLED, on_progress=reports.append, on_completion=single.__setitem__
    )
    assert reports == sorted(reports, key=lambda report: (report.num_tokens, report.num_done))
    assert reports[-1] == GenerationProgress(len(completions), len(completions), sum(map(len, ids(completions))))
    assert [single[number] for number in range(len(single))] == completions


def test_a_stop_is_obeyed_at_once_and_leaves_all_in_order(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = load_model(model_folder).train()
    generator = TransformersGenerator(model, tokenizer)
    requests = make_requests(400)

    def stop(progress: GenerationProgress) -> None:
        raise StopRequested(f"after {progress.num_tokens} tokens")

    started_at = time.monotonic()
    with pytest.raises(StopRequested):
        generator.generate(requests, replace(SAMPLED, stop_token_ids=(), max_new_tokens=150), on_progress=stop)
    assert time.monotonic() - started_at < 6
    assert model.training
    assert ids(generator.generate(requests[:5], SAMPLED)) == ids(generator.generate(requests, SAMPLED)[:5])


def test_adapter_on_and_off(
    adapted_model: PeftModel,
    transformers_generator: TransformersGenerator,
    tokenizer: PreTrainedTokenizerBase,
    adapter_folder: Path,
) -> None:
    requests = make_requests(8)
    generator = TransformersGenerator(adapted_model, tokenizer)
    adapted = generator.generate(requests, SAMPLED, with_logprobs=True)
    bare = ids(transformers_generator.generate(requests, SAMPLED))
    assert ids(adapted) != bare
    expected = forward_logprobs(adapted_model, requests[0].prompt_token_ids, adapted[0].token_ids)
    assert adapted[0].logprobs == pytest.approx(expected, abs=1e-4)
    assert ids(TransformersGenerator(adapted_model, tokenizer, adapter=None).generate(requests, SAMPLED)) == bare
    generator.use_adapter(None)
    assert ids(generator.generate(requests, SAMPLED)) == bare
    generator.use_adapter(adapter_folder)
    assert ids(generator.generate(requests, SAMPLED)) == ids(adapted)


def test_the_adapter_is_still_trained_after_sampling_without_it(
    model_folder: Path, adapter_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = PeftModel.from_pretrained(load_model(model_folder), adapter_folder, is_trainable=True)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    TransformersGenerator(model, tokenizer, adapter=None).generate(make_requests(2), SAMPLED)
    assert trained
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_it_samples_from_the_weights_of_the_moment(
    model_folder: Path, other_model_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, other = load_model(model_folder), load_model(other_model_folder)
    generator = TransformersGenerator(model, tokenizer)
    before = ids(generator.generate(make_requests(6), SAMPLED))
    model.load_state_dict(other.state_dict())
    after = ids(generator.generate(make_requests(6), SAMPLED))
    assert after != before
    assert after == ids(TransformersGenerator(other, tokenizer).generate(make_requests(6), SAMPLED))


def test_autocast_samples_in_the_trainers_precision(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, reference_model: PreTrainedModel
) -> None:
    generator = TransformersGenerator(load_model(model_folder), tokenizer, autocast_dtype=torch.bfloat16)
    request = make_requests(1)[0]
    (completion,) = generator.generate([request], SAMPLED, with_logprobs=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = forward_logprobs(reference_model, request.prompt_token_ids, completion.token_ids)
    exact = forward_logprobs(reference_model, request.prompt_token_ids, completion.token_ids)
    assert completion.logprobs == pytest.approx(expected, abs=0.15)
    assert completion.logprobs != pytest.approx(exact, abs=1e-4)


def test_a_request_over_the_context_is_refused(transformers_generator: TransformersGenerator) -> None:
    requests = [GenerationRequest((2,) * (MAX_MODEL_LEN - 10), 0)]
    with pytest.raises(ContextTooLongError, match="max_new_tokens 40 exceed"):
        transformers_generator.generate(requests, SAMPLED)


def test_an_empty_prompt_is_refused(transformers_generator: TransformersGenerator) -> None:
    with pytest.raises(ValueError, match="request 1 has an empty prompt"):
        transformers_generator.generate([GenerationRequest((2,), 0), GenerationRequest((), 0)], SAMPLED)


def test_no_requests_no_completions(transformers_generator: TransformersGenerator) -> None:
    assert transformers_generator.generate([], SAMPLED) == []
