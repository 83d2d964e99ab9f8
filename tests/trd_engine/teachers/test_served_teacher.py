"""Whole runs with a teacher behind a real HTTP server: by text alone, and with log-probabilities."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.trd_engine import rank_runs
from tests.trd_engine.forked import fork_ranks
from tests.trd_engine.generation.scripted_server import Received, Reply, ScriptedServer, serving
from tests.trd_engine.served_models import CONTEXT, ServedModel
from tests.trd_engine.tiny_runs import MODELS, WHOLE_ANSWERS, events, metric, spec, write_data
from tests.trd_engine.torchrun import run_engine
from trd_engine.config import RunConfig, ServedTeacherConfig, parse_config
from trd_engine.generation.served.client import open_endpoint
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import (
    ContextTooLongError,
    SpecError,
    StopRequested,
    TeacherRefusedError,
    TeacherUnreachableError,
    TokenizerMismatchError,
)
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.loop import distil

KEY = "the-key-that-nobody-may-see"
TOP_K = {"support": "top_k", "teacher_top_k": 5, "teacher_context": "refine"}
SHORT: dict[str, Any] = {**WHOLE_ANSWERS, "optim": {"learning_rate": 1e-3, "batch_size": 8}, "rounds": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=24, heldout=8)


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return ServedModel()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_TEACHER_API_KEY", KEY)


def served(server: ScriptedServer, api: str = "vllm", **changes: Any) -> dict[str, Any]:
    endpoint = {
        "endpoint": "big",
        "base_url": server.url,
        "model": "teacher",
        "api": api,
        "api_key_env": "BIG_TEACHER_API_KEY",
        "network": "loopback",
        "max_tries": 3,
        "timeout_seconds": 20,
    }
    return {**endpoint, **changes}


def config_of(data: Path, teacher: Any, loss: dict[str, Any], **changes: Any) -> RunConfig:
    return parse_config(spec(data, teacher=teacher, loss=loss, **{**SHORT, **changes}))


def rows(out: Path) -> list[dict[str, Any]]:
    lines = (out / "rounds" / "0000" / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def codes(out: Path) -> list[str]:
    return [event["code"] for event in events(out, "notice")]


def test_by_text_alone_the_loss_is_the_cross_entropy_and_says_so(
    data: Path, tmp_path: Path, model: ServedModel
) -> None:
    with serving(model) as server:
        distil(config_of(data, served(server, "openai"), {"divergence": "cross_entropy"}), tmp_path)
    assert {received.path for received in server.received} == {"/v1/chat/completions"}
    assert {"teacher_without_logprobs", "teacher_tokenizer_unknown"} <= set(codes(tmp_path))
    names = {name for event in events(tmp_path, "metrics") for name in event["values"]}
    assert not any("kl" in name.split("_") or "divergence" in name or "teacher" in name for name in names), names
    heldout = metric(tmp_path, "heldout_cross_entropy")
    assert heldout[-1] < heldout[0]
    assert metric(tmp_path, "loss") == pytest.approx(metric(tmp_path, "cross_entropy_per_token"), rel=1e-4)
    for row in rows(tmp_path):
        eos = model.tokenizer.eos_token_id
        assert (row["token_ids"]["refined"][-1] == eos) == (row["detail"]["refined_finish_reason"] == "stop")


@pytest.fixture(scope="module")
def scored(data: Path, model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of three steps whose teacher scores."""
    out = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as environment, serving(model) as server:
        environment.setenv("BIG_TEACHER_API_KEY", KEY)
        distil(config_of(data, served(server), TOP_K), out)
    return out


def test_scores_train_as_the_local_model_does(data: Path, tmp_path: Path, scored: Path) -> None:
    """The served teacher's refinements, put into a local run's checkpoint: the losses are the same."""
    local = config_of(data, str(MODELS / "tiny-teacher"), TOP_K)
    state = checkpoint_folder(scored, 0)
    distil(local, tmp_path, resume_from=state)
    assert metric(tmp_path, "loss") == pytest.approx(metric(scored, "loss"), rel=1e-3)
    assert metric(tmp_path, "teacher_perplexity") == pytest.approx(metric(scored, "teacher_perplexity"), rel=1e-3)
    assert metric(tmp_path, "top1_agreement") == pytest.approx(metric(scored, "top1_agreement"), abs=1e-6)


def test_ids_and_prompts_are_the_servers_own(scored: Path, model: ServedModel) -> None:
    for row in rows(scored):
        refine_prompt = row["token_ids"]["refine_prompt"]
        assert row["rollout"] in model.tokenizer.decode(refine_prompt)
        ids = torch.tensor([refine_prompt])
        output = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=96)
        assert output[0, ids.shape[1] :].tolist() == row["token_ids"]["refined"]
    assert {"teacher_scores", "diagnosis_off"} <= set(codes(scored))
    assert events(scored, "diagnosis") == []
    assert metric(scored, "refined_accuracy")
    assert metric(scored, "heldout_top_k_forward_kl")[-1] < metric(scored, "heldout_top_k_forward_kl")[0]
    assert not metric(scored, "heldout_forward_kl")


def test_the_key_is_nowhere_in_what_a_run_leaves(scored: Path) -> None:
    files = [path for path in scored.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_scored_run_resumes_bitwise_and_asks_the_server_nothing_again(
    data: Path, tmp_path: Path, scored: Path, model: ServedModel
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def stop() -> bool:
        return (first / "events.jsonl").exists() and len(metric(first, "loss")) >= 1

    with serving(model) as server:
        with pytest.raises(StopRequested):
            distil(config_of(data, served(server), TOP_K), first, stop=stop)
        num_before = len(server.received)
        distil(config_of(data, served(server), TOP_K), second, resume_from=checkpoint_folder(first, 1))
        asked_again = Counter(received.path for received in server.received[num_before:])
    assert asked_again.keys() == {"/tokenize", "/v1/completions"}
    assert asked_again["/v1/completions"] == 1  # the check at the start
    whole, again = (load_file(checkpoint_folder(out, 3) / "model" / "model.safetensors") for out in (scored, second))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_share_the_asking_and_train_as_one_does(
    data: Path, tmp_path: Path, scored: Path, model: ServedModel
) -> None:
    with serving(model) as server:
        document = spec(data, teacher=served(server, max_concurrency=3), loss=TOP_K, devices=2, **SHORT)
        (tmp_path / "plan.json").write_text(json.dumps([(document, str(tmp_path / "two"), None)]))
        log, key = tmp_path / "log", {"BIG_TEACHER_API_KEY": KEY}
        ended = fork_ranks(rank_runs.plan, tmp_path, num_processes=2, log=log, **key)
        asked = Counter(received.path for received in server.received)
    assert ended == [0, 0], log.read_text()
    assert asked["/v1/chat/completions"] == 24 + 8
    assert asked["/v1/completions"] == 24 + 8 + 2  # each process checks once, at the start
    assert server.max_num_open <= 3
    assert rows(tmp_path / "two") == rows(scored)
    assert metric(tmp_path / "two", "loss") == pytest.approx(metric(scored, "loss"), rel=1e-5)
    one, other = (
        load_file(checkpoint_folder(out, 3) / "model" / "model.safetensors") for out in (scored, tmp_path / "two")
    )
    assert all((one[name] - other[name]).norm() <= 1e-4 * one[name].norm() for name in one)
    alone, last = parse_config({**document, "devices": 1}), checkpoint_folder(tmp_path / "two", 3)
    with pytest.raises(TeacherUnreachableError):  # the server is gone, and a check needs it
        distil(alone, tmp_path / "two", resume_from=last)


@pytest.mark.slow
def test_a_failure_in_one_of_two_processes_ends_both_with_its_reason(
    data: Path, tmp_path: Path, model: ServedModel
) -> None:
    def script(received: Received, number: int) -> Reply:
        return model(received, number) if number < 8 else Reply(401, {"error": "bad key"})

    with serving(script) as server:
        document = spec(data, teacher=served(server), loss=TOP_K, devices=2, **SHORT)
        done = run_engine(document, tmp_path / "out")
    assert done.returncode != 0
    assert "teacher_refused: teacher endpoint big refused a request with status 401" in done.stderr


def test_an_endpoint_for_fewer_than_the_devices_is_refused() -> None:
    teacher = {"endpoint": "big", "base_url": "https://teacher.test/v1", "model": "m", "max_concurrency": 1}
    with pytest.raises(SpecError, match="devices = 2: teacher endpoint big takes 1 requests at a time"):
        open_endpoint(
            ServedTeacherConfig.model_validate(teacher), "big", World(rank=1, size=2), model="m", is_vllm=False
        )


def test_opd_scores_the_raw_rollout(data: Path, tmp_path: Path, model: ServedModel) -> None:
    loss = {"divergence": "reverse_kl", "support": "top_k", "teacher_top_k": 5}
    with serving(model) as server:
        distil(config_of(data, served(server), loss, mode="opd"), tmp_path)
    assert {received.path for received in server.received} == {"/tokenize", "/v1/completions"}
    state = checkpoint_folder(tmp_path, 0)
    local = config_of(data, str(MODELS / "tiny-teacher"), loss, mode="opd")
    distil(local, tmp_path / "local", resume_from=state)
    assert metric(tmp_path / "local", "loss") == pytest.approx(metric(tmp_path, "loss"), rel=1e-3)


def test_a_server_that_stumbles_does_not_stop_a_run(data: Path, tmp_path: Path, model: ServedModel) -> None:
    stumbles = {3: Reply(500, {}), 5: Reply(429, {}, headers={"Retry-After": "0"}), 7: Reply(200, raw=b"<html>")}
    stumbles |= {9: Reply(200, {"choices": [{"message": {}}]}), 11: Reply(is_dropped=True)}
    stumbles |= {13: Reply(200, raw=b"not compressed", headers={"Content-Encoding": "gzip"})}

    def script(received: Received, number: int) -> Reply:
        return stumbles[number] if number in stumbles else model(received, number)

    with serving(script) as server:
        distil(config_of(data, served(server, "openai", max_concurrency=1), {"divergence": "cross_entropy"}), tmp_path)
    assert len(server.received) == 24 + 8 + len(stumbles)
    assert events(tmp_path, "finished")


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (Reply(503, {}), TeacherUnreachableError, "big gave no answer in 2 tries; the last error: .*503"),
        (Reply(is_dropped=True), TeacherUnreachableError, "big gave no answer in 2 tries"),
        (Reply(401, {"error": "bad key"}), TeacherRefusedError, "big refused a request with status 401.*bad key"),
    ],
    ids=["503", "dropped", "401"],
)
def test_a_server_that_fails_for_good_fails_the_run_clearly(
    data: Path, tmp_path: Path, reply: Reply, error: type[Exception], words: str
) -> None:
    with serving(lambda received, number: reply) as server:
        config = config_of(data, served(server, max_tries=2), TOP_K)
        with pytest.raises(error, match=words) as raised:
            distil(config, tmp_path)
    assert server.url not in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("loss", [TOP_K, {"divergence": "cross_entropy"}], ids=["top_k", "cross_entropy"])
def test_another_tokenizer_is_refused_with_the_first_difference(
    data: Path, tmp_path: Path, model: ServedModel, loss: dict[str, Any]
) -> None:
    def script(received: Received, number: int) -> Reply:
        reply = model(received, number)
        if received.path == "/tokenize" and received.body["prompt"].startswith("12+3"):
            reply.document["tokens"][2] += 1
        return reply

    with serving(script) as server, pytest.raises(TokenizerMismatchError, match=r"from token 2 on.*endpoint big"):
        distil(config_of(data, served(server), loss), tmp_path)


def test_a_context_that_is_too_short_is_reported_before_sampling(
    data: Path, tmp_path: Path, model: ServedModel
) -> None:
    refine = {"max_prompt_tokens": CONTEXT - 96, "max_new_tokens": 96}
    with serving(model) as server, pytest.raises(ContextTooLongError, match=f"endpoint big takes {CONTEXT}"):
        distil(config_of(data, served(server), TOP_K, refine=refine), tmp_path)
    assert {received.path for received in server.received} == {"/tokenize"}


def limited(model: ServedModel, max_logprobs: int, received: Received, number: int) -> Reply:
    """Answer like a vLLM that was started with `--max-logprobs`."""
    asked = received.body.get("prompt_logprobs", 0)
    if asked <= max_logprobs:
        return model(received, number)
    said = f"Requested prompt logprobs of {asked}, which is greater than max allowed: {max_logprobs}"
    return Reply(400, {"error": {"message": said, "code": 400}})


def test_a_server_that_scores_too_few_tokens_is_reported_before_sampling(
    data: Path, tmp_path: Path, model: ServedModel
) -> None:
    config_words = r"loss\.teacher_top_k = 5.*endpoint big returns fewer tokens.*lower loss\.teacher_top_k, or .*"
    with serving(partial(limited, model, 4)) as server:
        with pytest.raises(TeacherRefusedError, match=config_words + "--max-logprobs.*max allowed: 4"):
            distil(config_of(data, served(server), TOP_K), tmp_path)
        assert not {"/v1/chat/completions"} & {received.path for received in server.received}
        distil(config_of(data, served(server), {**TOP_K, "teacher_top_k": 4}), tmp_path / "lower")


def test_a_refusal_to_score_at_all_is_not_blamed_on_the_number(data: Path, tmp_path: Path, model: ServedModel) -> None:
    with (
        serving(partial(limited, model, 0)) as server,
        pytest.raises(TeacherRefusedError, match="prompt logprobs of 1") as raised,
    ):
        distil(config_of(data, served(server), TOP_K), tmp_path)
    assert "loss.teacher_top_k" not in str(raised.value)


def test_a_missing_key_is_reported(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIG_TEACHER_API_KEY")
    with serving(lambda received, number: Reply()) as server:
        config = config_of(data, served(server), TOP_K)
        with pytest.raises(TeacherRefusedError, match=r"BIG_TEACHER_API_KEY.*is not set"):
            distil(config, tmp_path)
    assert not server.received


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "opd", "loss": {}, "api": "openai"}, "of its own answers to the refining prompt; use mode trd"),
        ({"loss": {**TOP_K, "teacher_context": "vanilla"}, "api": "openai"}, "use teacher_context refine, or"),
        ({"loss": {**TOP_K, "token_weights": {"drift_gamma": 0.5}}, "api": "openai"}, "may return none for some"),
        (
            {"loss": {**TOP_K, "divergence": "reverse_kl"}, "api": "openai"},
            "use loss.divergence forward_kl without rev",
        ),
        ({"loss": {**TOP_K, "reverse_after": 0.5}, "api": "openai"}, "use loss.divergence forward_kl"),
        ({"loss": {}, "api": "openai"}, "a few tokens only; use top_k"),
        ({"loss": {"support": "full"}}, "a few tokens only; use top_k"),
        ({"loss": {"divergence": "cross_entropy"}, "mode": "opd"}, "in mode trd"),
        ({"loss": {"divergence": "cross_entropy", "temperature": 2.0}}, "no temperature"),
        ({"loss": TOP_K, "teacher_precision": "bf16"}, "set on its server"),
        ({"loss": TOP_K, "teacher_update": {"kind": "ema"}}, "teaches itself"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused(data: Path, changes: dict[str, Any], words: str) -> None:
    api = changes.pop("api", "vllm")
    teacher = {"endpoint": "big", "base_url": "https://teacher.test/v1", "model": "m", "api": api}
    with pytest.raises(ValidationError, match=words):
        RunConfig.model_validate(spec(data, **{"teacher": teacher, **changes}))
