"""A pool of scripted servers: versions, spread, failures, and answers that must not be used."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.trd_engine.generation.random_models import SAMPLED, STOP_ID
from tests.trd_engine.generation.scripted_server import Received, Reply, ScriptedServer, serving
from trd_engine.config import SamplerPoolConfig
from trd_engine.generation.served import client as subject
from trd_engine.generation.served.generator import PoolGenerator
from trd_engine.models.folders import weights_fingerprint
from trd_engine.runtime.distributed import ALONE
from trd_engine.runtime.errors import SamplersRefusedError, SamplersUnreachableError, SpecError, StopRequested
from trd_engine.types import Completion, GenerationProgress, GenerationRequest, SamplingSettings

GREEDY = replace(SAMPLED, temperature=0.0, max_new_tokens=6)
Tamper = Callable[[dict[str, Any], Received], Any]


class Sampler:
    """Speaks as a sample server does. Its completions depend on the weights, the prompt and the seed."""

    def __init__(self, base: str) -> None:
        self.versions = {base}
        self.tamper: Tamper | None = None
        """Makes the answer to a completion another one: a document, or a whole reply."""

    def __call__(self, received: Received, number: int) -> Reply:
        if received.method == "GET":
            return Reply(200 if received.path == "/health" else 404)
        if received.method == "PUT":
            name = received.path.removeprefix("/v1/adapters/")
            assert name.endswith(hashlib.sha256(received.content).hexdigest())
            self.versions.add(name)
            return Reply(document={"message": "loaded"})
        assert received.path == "/v1/completions"
        body = received.body
        if body["model"] not in self.versions:
            return Reply(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        choice = {"token_ids": expected_ids(body), "prompt_token_ids": body["prompt"], "finish_reason": "stop"}
        if body["logprobs"] is not None:
            choice["logprobs"] = {"token_logprobs": [-0.5] * len(expected_ids(body))}
        document = {"model": body["model"], "choices": [choice]}
        found = document if self.tamper is None else self.tamper(document, received)
        return found if isinstance(found, Reply) else Reply(document=found)


def expected_ids(body: dict[str, Any]) -> list[int]:
    told = json.dumps([body["model"], body["prompt"], body["seed"]]).encode()
    return [2 + byte % 60 for byte in hashlib.sha256(told).digest()[:5]] + [STOP_ID]


@contextmanager
def pool_of(num: int, base: str) -> Iterator[list[tuple[Sampler, ScriptedServer]]]:
    with ExitStack() as stack:
        samplers = [Sampler(base) for _ in range(num)]
        yield [(sampler, stack.enter_context(serving(sampler))) for sampler in samplers]


def generator_of(
    pool: Sequence[tuple[Sampler, ScriptedServer]], folder: Path, tokenizer: PreTrainedTokenizerBase, **changes: Any
) -> PoolGenerator:
    urls = [server.url for _, server in pool]
    given = {"name": "h200s", "base_url": urls[0], "replicas": urls[1:], "network": "loopback", "timeout_seconds": 20}
    return PoolGenerator(SamplerPoolConfig.model_validate({**given, **changes}), folder, tokenizer, ALONE)


def requests_of(num: int) -> list[GenerationRequest]:
    return [GenerationRequest((2 + i % 50, 3, 4), seed=i) for i in range(num)]


def ids_of(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [tuple(completion.token_ids) for completion in completions]


def num_completions(server: ScriptedServer) -> int:
    return sum(received.path == "/v1/completions" for received in server.received)


@pytest.fixture
def base(model_folder: Path) -> str:
    return weights_fingerprint(model_folder)


def test_the_request_and_the_answer(model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    reports: list[GenerationProgress] = []
    single: dict[int, Completion] = {}
    with pool_of(1, base) as pool:
        generator = generator_of(pool, model_folder, tokenizer)
        completions = generator.generate(
            requests_of(3), SAMPLED, with_logprobs=True, on_progress=reports.append, on_completion=single.__setitem__
        )
    bodies = sorted((received.body for received in pool[0][1].received), key=lambda body: body["seed"])
    assert bodies[2] == {
        "model": base,
        "prompt": [4, 3, 4],
        "seed": 2,
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 20,
        "max_tokens": 40,
        "stop_token_ids": [STOP_ID],
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": 0,
    }
    assert ids_of(completions) == [tuple(expected_ids(body)) for body in bodies]
    assert [c.logprobs for c in completions] == [(-0.5,) * 6] * 3
    assert [single[number] for number in range(3)] == completions
    assert reports[-1] == GenerationProgress(3, 3, 18)


def test_requests_are_spread_over_the_servers(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str
) -> None:
    """Each gets as many as it answers: none waits at one server while another is idle."""
    with pool_of(3, base) as pool:
        generator_of(pool, model_folder, tokenizer, max_concurrency=6).generate(requests_of(60), GREEDY)
    assert all(num_completions(server) >= 10 for _, server in pool)
    assert all(server.max_num_open <= 6 for _, server in pool)


def test_each_version_is_given_once_to_each_server_and_answers_alone(
    model_folder: Path,
    adapter_folder: Path,
    other_adapter_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    base: str,
) -> None:
    found: list[list[tuple[int, ...]]] = []
    with pool_of(2, base) as pool:
        generator = generator_of(pool, model_folder, tokenizer)
        for folder in (None, adapter_folder, other_adapter_folder, adapter_folder, None):
            generator.use_adapter(folder)
            found.append(ids_of(generator.generate(requests_of(8), GREEDY)))
        uploads = [[r.path for r in server.received if r.method == "PUT"] for _, server in pool]
    assert found[0] == found[4]
    assert found[1] == found[3]
    assert len({tuple(one) for one in found}) == 3
    assert [len(one) for one in uploads] == [2, 2]
    assert set(uploads[0]) == set(uploads[1])
    assert all(path.startswith(f"/v1/adapters/{base}-") for path in uploads[0])


def test_a_server_that_lost_its_versions_gets_them_again(
    model_folder: Path, adapter_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str
) -> None:
    with pool_of(1, base) as pool:
        generator = generator_of(pool, model_folder, tokenizer)
        generator.use_adapter(adapter_folder)
        before = generator.generate(requests_of(4), GREEDY)
        pool[0][0].versions = {base}  # it was started again
        assert generator.generate(requests_of(4), GREEDY) == before
    assert sum(received.method == "PUT" for received in pool[0][1].received) == 2


def _of_other_weights(document: dict[str, Any], received: Received) -> Any:
    return {**document, "model": "0" * 64}


def _choice(**changes: Any) -> Tamper:
    return lambda document, received: {**document, "choices": [{**document["choices"][0], **changes}]}


@pytest.mark.parametrize(
    "tamper",
    [
        _of_other_weights,
        _choice(prompt_token_ids=[9, 9]),
        _choice(token_ids=[5, 6], finish_reason="abort", logprobs={"token_logprobs": [-0.5] * 2}),
        _choice(token_ids=[5, 6], logprobs={"token_logprobs": [-0.5] * 2}),
        _choice(token_ids=[], logprobs={"token_logprobs": []}),
        _choice(token_ids=None),
        _choice(finish_reason="abort"),
        _choice(logprobs={"token_logprobs": [-0.5]}),
        lambda document, received: Reply(raw=json.dumps(document).encode()[:-20]),
        lambda document, received: Reply(500, {"error": "boom"}),
        lambda document, received: Reply(is_dropped=True),
        lambda document, received: {},
    ],
    ids=[
        "other-weights",
        "other-prompt",
        "aborted",
        "cut-short",
        "empty",
        "no-ids",
        "aborted-at-the-end",
        "too-few-logprobs",
        "truncated",
        "500",
        "dropped",
        "another-form",
    ],
)
def test_an_answer_that_cannot_be_used_comes_from_another_server(
    tamper: Tamper, model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str
) -> None:
    """And if there is no other, the run ends with an error that a later attempt may not meet."""
    with pool_of(2, base) as pool:
        pool[0][0].tamper = tamper
        completions = generator_of(pool, model_folder, tokenizer).generate(requests_of(8), GREEDY, with_logprobs=True)
        bodies = sorted((r.body for r in pool[1][1].received if r.method == "POST"), key=lambda body: body["seed"])
        assert ids_of(completions) == [tuple(expected_ids(body)) for body in bodies]
        alone = generator_of(pool[:1], model_folder, tokenizer, max_tries=1)
        with pytest.raises(SamplersUnreachableError, match="sampler pool h200s gave no answer in 1 tries") as raised:
            alone.generate(requests_of(1), GREEDY, with_logprobs=True)
    assert "127.0.0.1" not in str(raised.value)


def test_a_server_that_is_gone_is_tried_now_and_then_and_all_gone_is_an_error(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trd_engine.generation.served.client.WAIT_SECONDS", 0.05)
    with pool_of(2, base) as pool:
        generator = generator_of(pool, model_folder, tokenizer, max_tries=2)
        expected = generator.generate(requests_of(12), GREEDY)
    with pool_of(1, base) as rest:
        mixed = generator_of([pool[0], *rest], model_folder, tokenizer)
        assert mixed.generate(requests_of(12), GREEDY) == expected
        assert num_completions(rest[0][1]) == 12
    with pytest.raises(SamplersUnreachableError, match="gave no answer in 2 tries; the last error: ConnectError"):
        generator.generate(requests_of(3), GREEDY)


def test_a_server_that_hangs_is_found_by_its_health(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before a request's own time limit; a slow server that is alive is waited for."""
    monkeypatch.setattr(subject, "HEALTH_SECONDS", 0.3)
    never, later = threading.Event(), threading.Event()
    with pool_of(2, base) as pool:
        (frozen, _), (slow, _) = pool
        generator = generator_of(pool, model_folder, tokenizer)
        expected = generator.generate(requests_of(4), GREEDY)

        def freeze(received: Received, number: int) -> Reply:
            return Reply(wait_for=never)

        def answer_late(document: dict[str, Any], received: Received) -> Reply:
            return Reply(document=document, wait_for=later)

        pool[0][1].script = freeze
        slow.tamper = answer_late
        timer = threading.Timer(1.5, later.set)
        timer.start()
        assert generator.generate(requests_of(4), GREEDY) == expected
        assert sum(received.path == "/health" for received in pool[1][1].received) >= 2
        pool[0][1].script = frozen
        never.set()
        timer.join()


def test_a_refusal_ends_the_run_and_names_the_server(
    model_folder: Path, adapter_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str
) -> None:
    """As of a server with other base weights, or with room for smaller adapters only."""

    def refuse_uploads(received: Received, number: int) -> Reply:
        if received.method == "PUT":
            return Reply(400, {"message": "LoRA rank 64 is greater than max_lora_rank 16."})
        return Reply(404, {})

    with pool_of(2, base) as pool:
        generator = generator_of(pool, model_folder, tokenizer)
        pool[1][1].script = refuse_uploads
        generator.use_adapter(adapter_folder)
        with pytest.raises(SamplersRefusedError, match=r"h200s, server 2 of 2, refused .* status 400: .*max_lora_rank"):
            generator.generate(requests_of(4), GREEDY)
        pool[1][1].script = lambda received, number: Reply(404, {"error": "The model does not exist"})
        generator.use_adapter(None)
        with pytest.raises(SamplersRefusedError, match=r"status 404: .*does not exist"):
            generator.generate(requests_of(4), GREEDY)


def test_a_stop_is_obeyed_while_the_servers_are_silent(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str
) -> None:
    never = threading.Event()

    def stop(progress: GenerationProgress) -> None:
        raise StopRequested

    with pool_of(2, base) as pool:
        for _, server in pool:
            server.script = lambda received, number: Reply(wait_for=never)
        with pytest.raises(StopRequested):
            generator_of(pool, model_folder, tokenizer).generate(requests_of(4), GREEDY, on_progress=stop)
        never.set()


def test_full_weights_are_refused(model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    with pool_of(1, base) as pool, pytest.raises(SpecError, match="train with lora"):
        generator_of(pool, model_folder, tokenizer).load_weights(model_folder)


def test_the_key_comes_from_the_environment(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool_of(1, base) as pool:
        with pytest.raises(SamplersRefusedError, match="POOL_API_KEY with its key is not set"):
            generator_of(pool, model_folder, tokenizer, api_key_env="POOL_API_KEY")
        monkeypatch.setenv("POOL_API_KEY", "secret")
        generator_of(pool, model_folder, tokenizer, api_key_env="POOL_API_KEY").generate(requests_of(1), GREEDY)
        assert pool[0][1].received[0].authorization == "Bearer secret"
        with pytest.raises(SamplersRefusedError, match="sampler pool h200s: its address leads outside its network"):
            generator_of(pool, model_folder, tokenizer, base_url="https://10.0.0.1/v1", network="public")


def test_sampling_settings_are_those_of_the_call(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, base: str
) -> None:
    with pool_of(1, base) as pool:
        settings = SamplingSettings(1.0, 1.0, -1, 6, (STOP_ID, 3))
        generator_of(pool, model_folder, tokenizer).generate(requests_of(1), settings)
    body = pool[0][1].received[0].body
    assert (body["top_k"], body["stop_token_ids"], body["logprobs"]) == (0, [STOP_ID, 3], None)
