"""The vLLM generator on a CPU: ids in and out, agreement with transformers, weights that change, stops."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.trd_engine.generation.random_models import (
    GREEDY,
    MAX_MODEL_LEN,
    SAMPLED,
    STOP_ID,
    assert_sampled_by,
    encoded_again,
    ids,
    load_model,
    make_requests,
    write_adapter,
)
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.generation.vllm.generator import VllmGenerator
from trd_engine.runtime.errors import CheckpointCorruptError, ContextTooLongError, SpecError, StopRequested
from trd_engine.types import Completion, GenerationProgress, GenerationRequest


def test_ids_go_in_and_come_out_unchanged(
    vllm_generator: VllmGenerator, reference_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    requests = make_requests()
    for request in requests:
        assert encoded_again(tokenizer, request.prompt_token_ids) != request.prompt_token_ids
    completions = vllm_generator.generate(requests, SAMPLED, with_logprobs=True)
    assert any(encoded_again(tokenizer, c.token_ids) != c.token_ids for c in completions)
    assert_sampled_by(reference_model, requests, completions)


def test_greedy_equals_transformers(
    vllm_generator: VllmGenerator, transformers_generator: TransformersGenerator
) -> None:
    requests = make_requests()
    served = vllm_generator.generate(requests, GREEDY, with_logprobs=True)
    borrowed = transformers_generator.generate(requests, GREEDY, with_logprobs=True)
    assert [replace(c, logprobs=None) for c in served] == [replace(c, logprobs=None) for c in borrowed]


def test_both_generators_draw_from_the_same_cut_distribution(
    vllm_generator: VllmGenerator, transformers_generator: TransformersGenerator, reference_model: PreTrainedModel
) -> None:
    def best_logprob(request: GenerationRequest) -> float:
        with torch.no_grad():
            logits = reference_model(torch.tensor([request.prompt_token_ids])).logits
        return float(logits[0, -1].log_softmax(dim=-1).max())

    undecided = min(make_requests(), key=best_logprob)
    one_token = replace(SAMPLED, max_new_tokens=1, top_k=5, top_p=0.9, temperature=1.5)
    requests = [replace(undecided, seed=seed) for seed in range(2000)]
    served, borrowed = (
        torch.tensor(ids(generator.generate(requests, one_token))).flatten().bincount(minlength=64) / len(requests)
        for generator in (vllm_generator, transformers_generator)
    )
    assert torch.equal(served > 0, borrowed > 0)
    assert 2 <= (served > 0).sum() <= 5
    assert torch.allclose(served, borrowed, atol=0.05)  # three standard deviations of a difference


def test_a_stop_token_is_part_of_the_completion_and_not_of_its_text(
    vllm_generator: VllmGenerator, tokenizer: PreTrainedTokenizerBase
) -> None:
    completions = vllm_generator.generate(make_requests(), SAMPLED)
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert completion.token_ids.index(STOP_ID) == len(completion.token_ids) - 1
        assert completion.text == tokenizer.decode(list(completion.token_ids[:-1]))


def test_the_models_own_end_token_stops_only_where_it_is_asked_to(vllm_generator: VllmGenerator) -> None:
    endless = replace(SAMPLED, stop_token_ids=())
    completions = vllm_generator.generate(make_requests(), endless)
    assert {(c.finish_reason, len(c.token_ids)) for c in completions} == {("length", endless.max_new_tokens)}
    assert any(STOP_ID in c.token_ids for c in completions)
    on_another = vllm_generator.generate(make_requests(), replace(SAMPLED, stop_token_ids=(STOP_ID, 9)))
    assert {c.token_ids[-1] for c in on_another if c.finish_reason == "stop"} == {STOP_ID, 9}


def test_the_same_seeds_give_the_same_samples_whatever_came_before(vllm_generator: VllmGenerator) -> None:
    requests = make_requests()
    first = vllm_generator.generate(requests, SAMPLED, with_logprobs=True)
    vllm_generator.generate(make_requests(7), replace(SAMPLED, temperature=1.5))
    assert vllm_generator.generate(requests, SAMPLED, with_logprobs=True) == first
    reseeded = [replace(request, seed=request.seed + 1) for request in requests]
    assert ids(vllm_generator.generate(reseeded, SAMPLED)) != ids(first)


def test_seeds_hold_where_prompts_fill_many_steps(vllm_generator: VllmGenerator) -> None:
    requests = [GenerationRequest((2 + i % 20, 4) * 60, seed=i) for i in range(40)]  # 4,800 prompt tokens
    short = replace(SAMPLED, max_new_tokens=8)
    together = vllm_generator.generate(requests, short)
    assert ids(vllm_generator.generate(requests[30:], short)) == ids(together)[30:]


def test_global_random_states_are_left_alone(vllm_generator: VllmGenerator) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    vllm_generator.generate(make_requests(4), SAMPLED)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_an_adapter_answers_and_none_is_the_bare_model_again(
    vllm_generator: VllmGenerator,
    reference_model: PreTrainedModel,
    adapted_model: PeftModel,
    adapter_folder: Path,
    other_adapter_folder: Path,
) -> None:
    requests = make_requests(8)
    bare = vllm_generator.generate(requests, SAMPLED, with_logprobs=True)
    vllm_generator.use_adapter(adapter_folder)
    adapted = vllm_generator.generate(requests, SAMPLED, with_logprobs=True)
    vllm_generator.use_adapter(other_adapter_folder)
    assert ids(vllm_generator.generate(requests, SAMPLED)) != ids(adapted)
    vllm_generator.use_adapter(None)
    assert vllm_generator.generate(requests, SAMPLED, with_logprobs=True) == bare
    assert_sampled_by(reference_model, requests, bare)
    assert_sampled_by(adapted_model, requests, adapted)


def test_a_folder_written_anew_is_read_anew(
    vllm_generator: VllmGenerator, model_folder: Path, tmp_path: Path, reference_model: PreTrainedModel
) -> None:
    requests = make_requests(4)
    for seed in (5, 6):
        folder = write_adapter(model_folder, tmp_path / "adapter", seed=seed)
        vllm_generator.use_adapter(folder)
        trained = PeftModel.from_pretrained(load_model(model_folder), folder).eval()
        assert_sampled_by(trained, requests, vllm_generator.generate(requests, SAMPLED, with_logprobs=True))


def test_full_weights_are_loaded_and_the_first_ones_again(
    vllm_generator: VllmGenerator, reference_model: PreTrainedModel, model_folder: Path, other_model_folder: Path
) -> None:
    requests = make_requests(8)
    before = vllm_generator.generate(requests, SAMPLED, with_logprobs=True)
    vllm_generator.load_weights(other_model_folder)
    after = vllm_generator.generate(requests, SAMPLED, with_logprobs=True)
    vllm_generator.load_weights(model_folder)
    assert vllm_generator.generate(requests, SAMPLED, with_logprobs=True) == before
    assert_sampled_by(reference_model, requests, before)
    assert_sampled_by(load_model(other_model_folder), requests, after)


def test_an_adapter_in_use_stays_in_use_over_new_weights(
    vllm_generator: VllmGenerator, other_model_folder: Path, adapter_folder: Path
) -> None:
    requests = make_requests(4)
    vllm_generator.use_adapter(adapter_folder)
    vllm_generator.load_weights(other_model_folder)
    model = PeftModel.from_pretrained(load_model(other_model_folder), adapter_folder).eval()
    assert_sampled_by(model, requests, vllm_generator.generate(requests, SAMPLED, with_logprobs=True))


def test_a_folder_without_an_adapter_or_weights_is_refused(vllm_generator: VllmGenerator, tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorruptError, match="holds no adapter"):
        vllm_generator.use_adapter(tmp_path)
    with pytest.raises(CheckpointCorruptError, match="holds no safetensors"):
        vllm_generator.load_weights(tmp_path)
    assert vllm_generator.generate(make_requests(2), SAMPLED)


def test_progress_grows_to_the_whole(vllm_generator: VllmGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trd_engine.generation.completions.REPORT_SECONDS", 0.0)
    reports: list[GenerationProgress] = []
    single: dict[int, Completion] = {}
    completions = vllm_generator.generate(
        make_requests(), SAMPLED, on_progress=reports.append, on_completion=single.__setitem__
    )
    assert len(reports) > SAMPLED.max_new_tokens / 2
    assert reports == sorted(reports, key=lambda report: (report.num_tokens, report.num_done))
    assert reports[-1] == GenerationProgress(len(completions), len(completions), sum(map(len, ids(completions))))
    assert [single[number] for number in range(len(single))] == completions


def test_a_stop_is_obeyed_at_once_and_leaves_the_engine_usable(vllm_generator: VllmGenerator) -> None:
    requests = make_requests(500)
    expected = vllm_generator.generate(requests[:6], SAMPLED)

    def stop(progress: GenerationProgress) -> None:
        raise StopRequested(f"after {progress.num_tokens} tokens")

    started_at = time.monotonic()
    with pytest.raises(StopRequested):
        vllm_generator.generate(requests, replace(SAMPLED, stop_token_ids=(), max_new_tokens=150), on_progress=stop)
    assert time.monotonic() - started_at < 6
    assert vllm_generator.generate(requests[:6], SAMPLED) == expected


def test_a_request_over_the_context_is_refused(vllm_generator: VllmGenerator) -> None:
    requests = [GenerationRequest((2,) * (MAX_MODEL_LEN - 10), 0)]
    with pytest.raises(ContextTooLongError, match="max_new_tokens 40 exceed"):
        vllm_generator.generate(requests, SAMPLED)


def test_a_temperature_that_vllm_does_not_sample_at_is_refused(vllm_generator: VllmGenerator) -> None:
    with pytest.raises(SpecError, match=r"sampling\.temperature 3\.0"):
        vllm_generator.generate(make_requests(1), replace(SAMPLED, temperature=3.0))


def test_no_requests_no_completions(vllm_generator: VllmGenerator) -> None:
    assert vllm_generator.generate([], SAMPLED) == []
