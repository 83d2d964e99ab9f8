"""Whole runs whose teacher returns log-probabilities of its own answers, as any OpenAI-compatible server may."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trd_engine.generation.scripted_server import Received, Reply, serving
from tests.trd_engine.served_models import ServedModel
from tests.trd_engine.teachers.test_served_teacher import SHORT, TOP_K, codes, config_of, rows, served
from tests.trd_engine.teachers.test_served_teacher import _key as key
from tests.trd_engine.teachers.test_served_teacher import data as data
from tests.trd_engine.teachers.test_served_teacher import model as model
from tests.trd_engine.tiny_runs import MODELS, events, metric, spec
from tests.trd_engine.torchrun import run_engine
from trd_engine.runtime.errors import StopRequested, TeacherRefusedError
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder, newest_checkpoint
from trd_engine.training.loop import distil

__all__ = ["data", "key", "model"]


@pytest.fixture(scope="module")
def scored_run(data: Path, model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of three steps on the log-probabilities of the refinements themselves."""
    out = tmp_path_factory.mktemp("scored_run")
    with pytest.MonkeyPatch.context() as environment, serving(model) as server:
        environment.setenv("BIG_TEACHER_API_KEY", "a-key")
        distil(config_of(data, served(server, "openai"), TOP_K), out)
        assert {received.path for received in server.received} == {"/v1/chat/completions"}
        assert len(server.received) == 24 + 8 + 2
    return out


def test_they_train_as_the_local_model_does_in_the_refining_prompt(
    data: Path, tmp_path: Path, scored_run: Path
) -> None:
    distil(config_of(data, str(MODELS / "tiny-teacher"), TOP_K), tmp_path, resume_from=checkpoint_folder(scored_run, 0))
    # The server lists 28 tokens that the head of 32 may put among its five best if the others are as unlikely.
    assert metric(tmp_path, "loss") == pytest.approx(metric(scored_run, "loss"), rel=1e-3)
    assert metric(tmp_path, "teacher_perplexity") == pytest.approx(metric(scored_run, "teacher_perplexity"), rel=1e-3)
    assert all(share < 0.05 for share in metric(scored_run, "cross_entropy_token_share"))
    assert metric(scored_run, "heldout_top_k_forward_kl")[-1] < metric(scored_run, "heldout_top_k_forward_kl")[0]
    assert "teacher_scores" in codes(scored_run)
    assert "teacher_without_logprobs" not in codes(scored_run)


def test_a_resumed_run_sends_no_requests_and_trains_on_stored_scores(
    data: Path, tmp_path: Path, scored_run: Path, model: ServedModel
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def stop() -> bool:
        return (first / "events.jsonl").exists() and len(metric(first, "loss")) >= 1

    with serving(model) as server:
        config = config_of(data, served(server, "openai"), TOP_K)
        with pytest.raises(StopRequested):
            distil(config, first, stop=stop)
        num_before = len(server.received)
        distil(config, second, resume_from=checkpoint_folder(first, 1))
        assert len(server.received) == num_before
    whole, again = (
        load_file(checkpoint_folder(out, 3) / "model" / "model.safetensors") for out in (scored_run, second)
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train_as_one_does(data: Path, tmp_path: Path, scored_run: Path, model: ServedModel) -> None:
    with serving(model) as server:
        document = spec(
            data,
            teacher=served(server, "openai"),
            loss=TOP_K,
            devices=2,
            **SHORT,
        )
        done = run_engine(document, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(tmp_path) == rows(scored_run)
    assert metric(tmp_path, "loss") == pytest.approx(metric(scored_run, "loss"), rel=1e-5)
    shares = metric(tmp_path, "cross_entropy_token_share")
    assert shares == pytest.approx(metric(scored_run, "cross_entropy_token_share"))


def without(received: Received, reply: Reply) -> Reply:
    for choice in reply.document["choices"]:
        choice.pop("logprobs", None)
    return reply


def refusing(received: Received, reply: Reply) -> Reply:
    asked = received.body.get("top_logprobs", 0)
    return Reply(400, {"error": "'top_logprobs' must be 4 or less"}) if asked > 4 else reply


def not_implemented(received: Received, reply: Reply) -> Reply:
    return Reply(501, {"error": "no logprobs here"}) if received.body.get("logprobs") else reply


def fewer(received: Received, reply: Reply) -> Reply:
    for entry in reply.document["choices"][0].get("logprobs", {}).get("content", []):
        del entry["top_logprobs"][3:]
    return reply


def another_shape(received: Received, reply: Reply) -> Reply:
    """Answer like the old completions API, which gives tokens and log-probabilities in two lists."""
    for entry in reply.document["choices"][0].get("logprobs", {}).get("content", []):
        entry["top_logprobs"] = None
    return reply


def tempered(received: Received, reply: Reply) -> Reply:
    """Answer like a server that returns the distribution that it samples from."""
    for entry in reply.document["choices"][0].get("logprobs", {}).get("content", []):
        best = entry["top_logprobs"]
        logprobs = torch.tensor([one["logprob"] for one in best]).div(received.body["temperature"]).log_softmax(-1)
        for one, logprob in zip(best, logprobs.tolist(), strict=True):
            one["logprob"] = logprob
    return reply


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without, "its answers have no log-probabilities"),
        (refusing, "loss.teacher_top_k = 5 tokens per position, and may accept a lower number.*must be 4 or less"),
        (not_implemented, "it refuses to return the log-probabilities.*501"),
        (fewer, "it returns 3 tokens per position, fewer than loss.teacher_top_k = 5"),
        (another_shape, "its answers have no log-probabilities"),
        (tempered, "depend on the temperature and top-p"),
    ],
)
def test_where_they_do_not_serve_the_loss_is_the_cross_entropy_and_says_why(
    data: Path, tmp_path: Path, model: ServedModel, change: Any, why: str
) -> None:
    changes: dict[str, Any] = {"evaluation": {"holdout": 0.0}, "optim": {"batch_size": 24}}
    with serving(lambda received, number: change(received, model(received, number))) as server:
        distil(config_of(data, served(server, "openai"), {**TOP_K, "temperature": 2.0}, **changes), tmp_path)
        asked = [received.body for received in server.received]
    assert not any("logprobs" in body for body in asked[-24:])
    (notice,) = [event for event in events(tmp_path, "notice") if event["code"] == "teacher_without_logprobs"]
    assert re.search(why, notice["message"])
    assert metric(tmp_path, "loss") == pytest.approx(metric(tmp_path, "cross_entropy_per_token"), rel=1e-4)
    card = (checkpoint_folder(tmp_path, 1) / "model" / "README.md").read_text(encoding="utf-8")
    assert "| Loss | cross_entropy, support full" in card


def test_a_run_that_began_without_them_continues_without_them(data: Path, tmp_path: Path, model: ServedModel) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def stop() -> bool:
        return (first / "events.jsonl").exists() and len(metric(first, "loss")) >= 1

    def script(received: Received, number: int) -> Reply:
        return without(received, model(received, number))

    with serving(script) as server, pytest.raises(StopRequested):
        distil(config_of(data, served(server, "openai"), TOP_K), first, stop=stop)
    with serving(model) as server:
        distil(config_of(data, served(server, "openai"), TOP_K), second, resume_from=checkpoint_folder(first, 1))
    assert metric(second, "cross_entropy_per_token")
    assert not metric(second, "divergence_per_token")


def test_a_run_stopped_between_two_rounds_continues_with_them(data: Path, tmp_path: Path, model: ServedModel) -> None:
    """Its checkpoint has no trajectories to tell from, and the server tells nothing any more."""
    first, second = tmp_path / "first", tmp_path / "second"
    changes: dict[str, Any] = {"rounds": 2, "evaluation": {"holdout": 0.0}, "optim": {"batch_size": 24}}

    def stop() -> bool:
        if not (first / "events.jsonl").exists():
            return False
        return events(first, "phase")[-1] | {"phase": "rollout", "round": 1} == events(first, "phase")[-1]

    with serving(model) as server, pytest.raises(StopRequested):
        distil(config_of(data, served(server, "openai"), TOP_K, **changes), first, stop=stop)
    checkpoint = newest_checkpoint(first)
    assert checkpoint is not None
    assert not (checkpoint / "state" / "trajectories.jsonl").exists()
    with serving(lambda received, number: without(received, model(received, number))) as server:
        distil(config_of(data, served(server, "openai"), TOP_K, **changes), second, resume_from=checkpoint)
    assert "teacher_without_logprobs" not in codes(second)
    assert "teacher_scores_partial" in codes(second)


def test_refinements_of_other_tokens_are_trained_on_by_their_text(
    data: Path, tmp_path: Path, model: ServedModel
) -> None:
    """One answer in three comes in tokens of two characters each, which the student does not have."""

    def script(received: Received, number: int) -> Reply:
        reply = model(received, number)
        logprobs = reply.document["choices"][0].get("logprobs")
        if logprobs is not None and number > 1 and number % 3 == 0:
            first, second = logprobs["content"][:2]
            merged = {**first, "token": first["token"] + second["token"], "bytes": None}
            logprobs["content"] = [merged, *logprobs["content"][2:]]
        return reply

    with serving(script) as server:
        distil(config_of(data, served(server, "openai", max_concurrency=1), TOP_K), tmp_path)
    notices = [event for event in events(tmp_path, "notice") if event["code"] == "teacher_scores_partial"]
    assert [event["level"] for event in notices] == ["warn", "warn"]
    assert sum(event["data"]["num_unscored_refinements"] for event in notices) == 11
    assert "token number 0 is" in notices[0]["message"]
    noticed = [row for row in rows(tmp_path) if any("cross-entropy instead" in n for n in row["detail"]["notices"])]
    assert len(noticed) == notices[1]["data"]["num_unscored_refinements"]
    assert all(0.05 < share < 0.8 for share in metric(tmp_path, "cross_entropy_token_share"))
    assert metric(tmp_path, "heldout_top_k_forward_kl")[-1] < metric(tmp_path, "heldout_top_k_forward_kl")[0]


@pytest.mark.parametrize("api", ["openai", "vllm"])
def test_a_rollout_that_is_left_out_of_the_refining_has_no_score(tmp_path: Path, model: ServedModel, api: str) -> None:
    """<user> and <assistant>, a problem of three or four tokens, a mark, and one token of what was cut."""
    given = [{"id": str(i), "problem": f"{i}+{2 + 10 * (i % 2)}", "answer": "1"} for i in range(8)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    changes: dict[str, Any] = {
        "dataset": {"path": str(path)},
        "evaluation": {"holdout": 0.0},
        "refine": {"max_prompt_tokens": 7, "max_new_tokens": 96},
    }
    with serving(model) as server:
        distil(config_of(tmp_path, served(server, api), TOP_K, **changes), tmp_path / "out")
    (notice,) = [event for event in events(tmp_path / "out", "notice") if event["code"] == "attempts_left_out"]
    assert notice["data"]["num_left_out"] == 4
    for row in rows(tmp_path / "out"):
        is_left_out = int(row["problem_id"]) % 2 == 1
        assert any("not refined: 8 prompt tokens" in said for said in row["detail"]["notices"]) == is_left_out
        assert (row["refined_tokens"] == 0) == is_left_out
        assert (row["refined_correct"] is None) == is_left_out
    assert metric(tmp_path / "out", "loss")
    again = config_of(tmp_path, str(MODELS / "tiny-teacher"), TOP_K, **changes)
    distil(again, tmp_path / "local", resume_from=checkpoint_folder(tmp_path / "out", 0))
    assert metric(tmp_path / "local", "loss")[0] == pytest.approx(metric(tmp_path / "out", "loss")[0], rel=1e-3)


def test_a_wrong_key_is_reported_before_sampling(data: Path, tmp_path: Path) -> None:
    with (
        serving(lambda received, number: Reply(401, {"error": "bad key"})) as server,
        pytest.raises(TeacherRefusedError, match="status 401"),
    ):
        distil(config_of(data, served(server, "openai"), TOP_K), tmp_path)
    assert len(server.received) == 2
