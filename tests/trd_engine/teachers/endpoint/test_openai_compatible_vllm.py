"""The endpoint teacher against vLLM's own server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.vllm_server import serving_model
from tests.trd_engine.generation.random_models import load_model
from trd_engine.generation.protocol import TextRequest
from trd_engine.generation.served.client import Endpoint
from trd_engine.generation.vllm.runtime import import_vllm
from trd_engine.runtime.errors import TeacherRefusedError
from trd_engine.teachers.endpoint.api import EndpointTeacher
from trd_engine.types import SamplingSettings

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

TEACHER = Path("testbed/models/tiny-teacher").resolve()
GREEDY = SamplingSettings(temperature=0, top_p=1, top_k=-1, max_new_tokens=120, stop_token_ids=())
TOP_K = 8


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    pytest.importorskip("vllm", exc_type=ImportError)
    with serving_model(TEACHER, name="teacher", api_key="secret", max_model_len=256) as url:
        yield Endpoint("local", url, "teacher", api_key="secret", network="loopback", is_vllm=True)


@pytest.fixture(scope="module")
def teacher(endpoint: Endpoint) -> EndpointTeacher:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    return EndpointTeacher(endpoint, tokenizer, end_of_turn_ids=(tokenizer.eos_token_id,))


def test_it_answers_by_text_as_the_model_does_by_ids(teacher: EndpointTeacher) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(TEACHER), load_model(TEACHER)
    problems = ["12+7-3*2+9-4", "55-6+8*3-2+7", "41*2+6-9+3-5"]
    completions = teacher.complete([TextRequest(problem, seed=0) for problem in problems], GREEDY)
    for problem, completion in zip(problems, completions, strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**prompt, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)
        expected = output[0, prompt["input_ids"].shape[1] :].tolist()
        assert completion.finish_reason == "stop"
        assert list(completion.token_ids) == expected


def test_the_models_own_sampling_defaults_do_not_reach_an_answer() -> None:
    """A server takes them from generation_config.json; Qwen2.5-Instruct's has a repetition penalty."""
    try:
        vllm = import_vllm()
    except ImportError:
        pytest.skip("vLLM is not installed")
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    endpoint = Endpoint("local", "http://127.0.0.1:9/v1", "teacher", network="loopback", is_vllm=True)
    teacher = EndpointTeacher(endpoint, tokenizer, end_of_turn_ids=(tokenizer.eos_token_id,))
    sampling = SamplingSettings(temperature=0.6, top_p=0.9, top_k=20, max_new_tokens=8, stop_token_ids=())
    request = ChatCompletionRequest.model_validate(teacher._chat_body(TextRequest("12+7", seed=3), sampling))
    defaults = {"temperature": 0.7, "top_p": 0.8, "top_k": 5, "min_p": 0.1}
    penalties = {"repetition_penalty": 1.1, "presence_penalty": 1.5, "frequency_penalty": 0.2}
    found = request.to_sampling_params(8, defaults | penalties)
    expected = vllm.SamplingParams(temperature=0.6, top_p=0.9, top_k=20, seed=3, max_tokens=8)
    for name in ("temperature", "top_p", "top_k", "seed", "min_p", *penalties):
        assert getattr(found, name) == getattr(expected, name), name


def test_its_scores_are_the_models_own(teacher: EndpointTeacher) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(TEACHER), load_model(TEACHER)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12+7-3"}], add_generation_prompt=True, return_dict=False
    )
    completion = tokenizer.encode("19-3", add_special_tokens=False)
    (scores,) = teacher.score([(prompt, completion)], TOP_K)
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(dim=-1)
    expected = logprobs_TV[len(prompt) - 1 : -1].topk(TOP_K, dim=-1)
    assert torch.equal(scores.token_ids_TK, expected.indices)
    assert torch.allclose(scores.logprobs_TK, expected.values, atol=1e-4)


def test_it_returns_its_tokens(teacher: EndpointTeacher) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    bare, chat = teacher.tokenize(["12+7"], as_chat=False)[0], teacher.tokenize(["12+7"], as_chat=True)[0]
    assert list(bare.token_ids) == tokenizer.encode("12+7", add_special_tokens=False)
    assert bare.max_model_len == 256
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12+7"}], add_generation_prompt=True, return_dict=False
    )
    assert list(chat.token_ids) == prompt
    (completion,) = teacher.complete([TextRequest("12+7", seed=0)], GREEDY)
    assert completion.prompt_token_ids == chat.token_ids


def test_its_refusals_are_reported(endpoint: Endpoint, teacher: EndpointTeacher) -> None:
    with pytest.raises(TeacherRefusedError, match="status 400"):
        teacher.complete([TextRequest("1+" * 400 + "1", seed=0)], GREEDY)
    nameless = Endpoint("local", endpoint.base_url, "teacher", network="loopback", is_vllm=True)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    with pytest.raises(TeacherRefusedError, match="status 401"):
        EndpointTeacher(nameless, tokenizer, end_of_turn_ids=(1,)).complete([TextRequest("1+1", seed=0)], GREEDY)
