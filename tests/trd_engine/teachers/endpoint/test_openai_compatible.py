"""A teacher behind an endpoint: its text as the student's ids, tries and pauses, refusals, stops."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.trd_engine.generation.random_models import SAMPLED, STOP_ID
from tests.trd_engine.generation.scripted_server import Received, Reply, ScriptedServer, chat_answer, serving
from trd_engine.generation.protocol import TextRequest
from trd_engine.generation.served.client import Endpoint
from trd_engine.runtime.errors import StopRequested, TeacherRefusedError, TeacherUnreachableError
from trd_engine.teachers.endpoint.api import EndpointTeacher
from trd_engine.types import Completion, GenerationProgress


def teacher_at(server: ScriptedServer, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> EndpointTeacher:
    endpoint = Endpoint(
        "gpu-box",
        server.url,
        "big-teacher",
        api_key="secret-key",
        network="loopback",
        timeout_seconds=5.0,
        max_tries=3,
        max_delay_seconds=0.01,
    )
    return EndpointTeacher(replace(endpoint, **changes), tokenizer, end_of_turn_ids=(STOP_ID,))


def make_text_requests(num: int) -> list[TextRequest]:
    return [TextRequest(f"question {i}", seed=i) for i in range(num)]


def test_texts_become_the_students_ids_in_the_order_of_the_requests(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = {f"question {i}": "abc" + "xyz"[i % 3] * (i + 1) for i in range(6)}

    def script(received: Received, number: int) -> Reply:
        time.sleep(0.01 * (6 - number))  # the first to ask is the last to hear
        return chat_answer(texts[received.body["messages"][0]["content"]])

    with serving(script) as server:
        completions = teacher_at(server, tokenizer).complete(make_text_requests(6), SAMPLED)
    assert [c.text for c in completions] == list(texts.values())
    for completion in completions:
        assert completion.token_ids == (*tokenizer.encode(completion.text), STOP_ID)
        assert completion.finish_reason == "stop"


def test_the_request(tokenizer: PreTrainedTokenizerBase) -> None:
    with serving(lambda received, number: chat_answer("abc")) as server:
        teacher_at(server, tokenizer).complete([TextRequest("why?", seed=7)], SAMPLED)
        teacher_at(server, tokenizer, is_vllm=True, api_key=None).complete([TextRequest("why?", seed=7)], SAMPLED)
    first, second = server.received
    assert first.path == "/v1/chat/completions"
    assert first.authorization == "Bearer secret-key"
    assert second.authorization is None
    assert first.body == {
        "model": "big-teacher",
        "messages": [{"role": "user", "content": "why?"}],
        "temperature": 0.8,
        "top_p": 0.95,
        "max_tokens": 40,
        "seed": 7,
    }
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
    assert second.body == {**first.body, "top_k": 20, "return_token_ids": True, **neutral}


def test_a_text_cut_by_length_has_no_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    with serving(lambda received, number: chat_answer("abc", "length")) as server:
        (completion,) = teacher_at(server, tokenizer).complete(make_text_requests(1), SAMPLED)
    assert completion.token_ids == tuple(tokenizer.encode("abc"))
    assert completion.finish_reason == "length"


def test_an_answer_whose_budget_went_into_thoughts_is_empty(tokenizer: PreTrainedTokenizerBase) -> None:
    """And no reason to ask again, or to end the run."""
    for reason in ("length", "content_filter"):
        with serving(lambda received, number, reason=reason: chat_answer(None, reason)) as server:
            (completion,) = teacher_at(server, tokenizer).complete(make_text_requests(1), SAMPLED)
        assert (completion.token_ids, completion.text, completion.finish_reason) == ((), "", "length")
        assert len(server.received) == 1


def test_a_refusal_is_an_empty_answer_that_nobody_learns_to_give(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in (None, ""):
        with serving(lambda received, number, text=text: chat_answer(text, "stop")) as server:
            (completion,) = teacher_at(server, tokenizer).complete(make_text_requests(1), SAMPLED)
        assert (completion.token_ids, completion.text) == ((), "")
        assert len(server.received) == 1


def test_half_a_character_is_replaced(tokenizer: PreTrainedTokenizerBase) -> None:
    with serving(lambda received, number: chat_answer("ab\ud83dc")) as server:
        (completion,) = teacher_at(server, tokenizer).complete(make_text_requests(1), SAMPLED)
    assert completion.text == "ab?c"


def test_a_text_over_the_budget_in_the_students_tokens_is_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    with serving(lambda received, number: chat_answer("acegikmo")) as server:
        (completion,) = teacher_at(server, tokenizer).complete(
            make_text_requests(1), replace(SAMPLED, max_new_tokens=5)
        )
    assert completion.token_ids == tuple(tokenizer.encode("acegi"))
    assert completion.finish_reason == "length"


def test_a_special_token_spelled_out_is_mere_text(tokenizer: PreTrainedTokenizerBase) -> None:
    with serving(lambda received, number: chat_answer("ac<end>eg")) as server:
        (completion,) = teacher_at(server, tokenizer).complete(make_text_requests(1), SAMPLED)
    assert STOP_ID not in completion.token_ids[:-1]
    assert completion.token_ids[-1] == STOP_ID


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(500, {"error": "boom"}),
        Reply(503, {}),
        Reply(429, {}, headers={"Retry-After": "0"}),
        Reply(200, raw=b"<html>"),
        Reply(200, {"choices": []}),
        Reply(200, {"choices": [{"message": {}}]}),
    ],
    ids=["500", "503", "429", "no-json", "no-choice", "no-text"],
)
def test_trouble_that_may_pass_is_tried_again(trouble: Reply, tokenizer: PreTrainedTokenizerBase) -> None:
    with serving(lambda received, number: trouble if number < 2 else chat_answer("abc")) as server:
        (completion,) = teacher_at(server, tokenizer).complete(make_text_requests(1), SAMPLED)
    assert completion.text == "abc"
    assert len(server.received) == 3


def test_a_lasting_failure_is_reported(tokenizer: PreTrainedTokenizerBase) -> None:
    with (
        serving(lambda received, number: Reply(503, {})) as server,
        pytest.raises(TeacherUnreachableError, match=r"gpu-box gave no answer in 3 tries; .*: .*status 503"),
    ):
        teacher_at(server, tokenizer).complete(make_text_requests(1), SAMPLED)
    assert len(server.received) == 3


def test_a_server_that_is_not_there(tokenizer: PreTrainedTokenizerBase) -> None:
    with serving(lambda received, number: chat_answer("abc")) as server:
        teacher = teacher_at(server, tokenizer)
    with pytest.raises(TeacherUnreachableError, match="ConnectError") as raised:
        teacher.complete(make_text_requests(1), SAMPLED)
    assert server.url not in str(raised.value)


def test_a_server_that_says_nothing_runs_out_of_time(tokenizer: PreTrainedTokenizerBase) -> None:
    never = threading.Event()
    with serving(lambda received, number: Reply(wait_for=never)) as server:
        started_at = time.monotonic()
        with pytest.raises(TeacherUnreachableError, match="Time"):
            teacher_at(server, tokenizer, timeout_seconds=0.2).complete(make_text_requests(1), SAMPLED)
        assert 0.6 <= time.monotonic() - started_at < 3
        never.set()


def test_the_servers_retry_after_is_respected(tokenizer: PreTrainedTokenizerBase) -> None:
    busy = Reply(429, {}, headers={"Retry-After": "1"})
    with serving(lambda received, number: busy if number == 0 else chat_answer("abc")) as server:
        started_at = time.monotonic()
        teacher_at(server, tokenizer, max_delay_seconds=30.0).complete(make_text_requests(1), SAMPLED)
    assert time.monotonic() - started_at >= 1


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 422])
def test_a_refusal_is_reported_at_once(status: int, tokenizer: PreTrainedTokenizerBase) -> None:
    refusal = Reply(status, {"error": "no such model"}, headers={"Location": "http://127.0.0.1:1/"})
    with (
        serving(lambda received, number: refusal) as server,
        pytest.raises(TeacherRefusedError, match=rf"gpu-box refused a request with status {status}.*no such model"),
    ):
        teacher_at(server, tokenizer, max_concurrency=1).complete(make_text_requests(20), SAMPLED)
    assert len(server.received) == 1


def test_no_more_requests_at_a_time_than_allowed(tokenizer: PreTrainedTokenizerBase) -> None:
    def script(received: Received, number: int) -> Reply:
        time.sleep(0.02)
        return chat_answer("abc")

    with serving(script) as server:
        teacher_at(server, tokenizer, max_concurrency=3).complete(make_text_requests(20), SAMPLED)
    assert server.max_num_open == 3


def test_progress_grows_to_the_whole(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trd_engine.generation.completions.REPORT_SECONDS", 0.0)
    reports: list[GenerationProgress] = []
    single: dict[int, Completion] = {}
    with serving(lambda received, number: chat_answer("ac")) as server:
        teacher = teacher_at(server, tokenizer, max_concurrency=1)
        completions = teacher.complete(
            make_text_requests(8), SAMPLED, on_progress=reports.append, on_completion=single.__setitem__
        )
    assert len(reports) > 4
    assert reports == sorted(reports, key=lambda report: report.num_done)
    assert reports[-1] == GenerationProgress(8, 8, 24)
    assert [single[number] for number in range(8)] == completions


def test_a_stop_is_obeyed_while_the_server_is_silent(tokenizer: PreTrainedTokenizerBase) -> None:
    never = threading.Event()

    def stop(progress: GenerationProgress) -> None:
        raise StopRequested

    with serving(lambda received, number: Reply(wait_for=never)) as server:
        started_at = time.monotonic()
        with pytest.raises(StopRequested):
            teacher_at(server, tokenizer).complete(make_text_requests(5), SAMPLED, on_progress=stop)
        assert time.monotonic() - started_at < 2
        never.set()


def test_scores_are_the_best_tokens_at_the_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    positions: list[Any] = [
        None,
        {"5": {"logprob": -0.1, "rank": 1}, "6": {"logprob": -2.5, "rank": 2}},
        {"9": {"logprob": -7.0, "rank": 41}, "3": {"logprob": -1.5, "rank": 2}, "4": {"logprob": -0.5, "rank": 1}},
        {"8": {"logprob": -0.2, "rank": 1}, "2": {"logprob": -1.9, "rank": 2}},
    ]
    answer = Reply(document={"choices": [{"text": "", "prompt_logprobs": positions}]})
    with serving(lambda received, number: answer) as server:
        (scores,) = teacher_at(server, tokenizer, is_vllm=True).score([((7, 5), (9, 8))], top_k=2)
    assert server.received[0].body["prompt"] == [7, 5, 9, 8]
    assert scores.token_ids_TK.tolist() == [[4, 3], [8, 2]]
    assert scores.logprobs_TK.tolist() == [[-0.5, -1.5], pytest.approx([-0.2, -1.9])]


def test_an_answers_own_log_probabilities_are_requested_and_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    best = [{"token": token, "bytes": None, "logprob": logprob} for token, logprob in (("a", -0.2), ("b", -1.7))]

    def script(received: Received, number: int) -> Reply:
        reply = chat_answer("a" if number == 0 else "ac")
        position: dict[str, Any] = {**best[0], "top_logprobs": best} if number < 2 else {"text": "a"}
        reply.document["choices"][0]["logprobs"] = {"content": [position]}
        return reply

    with serving(script) as server:
        teacher = teacher_at(server, tokenizer, max_concurrency=1)
        teacher.score_answers(2)
        one, other, odd = teacher.complete(make_text_requests(3), SAMPLED)
        assert len(server.received) == 3
    assert (server.received[0].body["logprobs"], server.received[0].body["top_logprobs"]) == (True, 2)
    assert one.scores is not None
    assert one.scores.token_ids_TK[0].tolist() == tokenizer.convert_tokens_to_ids(["a", "b"])
    assert one.scores.is_scored.tolist() == [True, False]  # the end of turn, of which this server tells nothing
    assert one.unscored_reason is None
    assert other.scores is not None
    assert not other.scores.is_scored.any()
    assert "token number 1 is missing" in (other.unscored_reason or "")
    assert (odd.text, odd.unscored_reason) == ("ac", "log-probabilities of an unexpected form: KeyError: 'token'")


def test_only_a_vllm_scores(tokenizer: PreTrainedTokenizerBase) -> None:
    with serving(lambda received, number: chat_answer("")) as server, pytest.raises(ValueError, match="cannot score"):
        teacher_at(server, tokenizer).score([((2,), (3,))], top_k=1)


def test_the_key_is_not_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "secret" not in repr(Endpoint("gpu-box", "http://127.0.0.1:1/v1", "m", api_key="secret"))


@pytest.mark.parametrize("status", [200, 400])
def test_an_endless_answer_is_given_up(
    status: int, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trd_engine.generation.served.client.MAX_ANSWER_BYTES", 10_000)
    long = b'{"choices": [' + b" " * 100_000
    with (
        serving(lambda received, number: Reply(status, raw=long)) as server,
        pytest.raises(TeacherUnreachableError, match="the answer is longer than 10000 bytes"),
    ):
        teacher_at(server, tokenizer).complete(make_text_requests(1), SAMPLED)
