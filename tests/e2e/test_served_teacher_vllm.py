"""A teacher behind vLLM's own server, alone with the engine and through service and worker."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.vllm_server import serving_model
from examples.local_service import local_service
from tests.trd_engine.generation.random_models import load_model
from tests.trd_engine.tiny_runs import MODELS, WHOLE_ANSWERS, events, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.runtime.errors import TeacherRefusedError
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.loop import distil

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm"), pytest.mark.timeout(900)]

KEY = "a-key-for-the-served-teacher"
VARIABLE = "SERVED_TEACHER_API_KEY"
LOSS = {"support": "top_k", "teacher_top_k": 10, "teacher_context": "refine"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("vllm", exc_type=ImportError)
    with serving_model(MODELS / "tiny-teacher", name="teacher", api_key=KEY, max_model_len=512) as base_url:
        yield base_url


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def endpoint(url: str, api: str) -> dict[str, Any]:
    return {"model": "teacher", "api": api, "api_key_env": VARIABLE, "network": "loopback"}


def test_a_run_trains_on_its_text_and_its_scores(url: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=24, heldout=8)
    changes: dict[str, Any] = {"optim": {"learning_rate": 1e-3, "batch_size": 8}, "loss": LOSS}
    teacher = {"endpoint": "big", "base_url": url, **endpoint(url, "vllm")}
    distil(parse_config(spec(data, **WHOLE_ANSWERS, teacher=teacher, **changes)), tmp_path / "served")
    lines = (tmp_path / "served" / "rounds" / "0000" / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer, model = AutoTokenizer.from_pretrained(MODELS / "tiny-teacher"), load_model(MODELS / "tiny-teacher")
    logprobs = []
    for row in map(json.loads, lines):
        ids = row["token_ids"]
        assert row["rollout"] in tokenizer.decode(ids["refine_prompt"])
        assert (ids["refined"][-1] == tokenizer.eos_token_id) == (row["detail"]["refined_finish_reason"] == "stop")
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*ids["refine_prompt"], *ids["refined"]]])).logits[0].log_softmax(-1)
        scored_logits_TV = logits_TV[len(ids["refine_prompt"]) - 1 : -1]
        logprobs += scored_logits_TV.gather(-1, torch.tensor(ids["refined"])[:, None])[:, 0].tolist()
    perplexities = [-math.log(value) for value in metric(tmp_path / "served", "teacher_perplexity")]
    tokens = metric(tmp_path / "served", "trained_tokens")
    mean = sum(a * b for a, b in zip(perplexities, tokens, strict=True)) / sum(tokens)
    assert mean == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-3)

    local = parse_config(spec(data, **WHOLE_ANSWERS, **changes))
    distil(local, tmp_path / "local", resume_from=checkpoint_folder(tmp_path / "served", 0))
    assert metric(tmp_path / "local", "loss") == pytest.approx(metric(tmp_path / "served", "loss"), rel=2e-3)
    assert events(tmp_path / "served", "finished")


def test_a_run_trains_on_the_log_probabilities_of_its_answers(url: str, tmp_path: Path) -> None:
    """The server as any OpenAI-compatible one: chat completions alone, whose tokens are spelled out."""
    data = write_data(tmp_path / "data", train=24, heldout=8)
    changes: dict[str, Any] = {"optim": {"learning_rate": 1e-3, "batch_size": 8}, "loss": LOSS}
    teacher = {"endpoint": "big", "base_url": url, **endpoint(url, "openai")}
    distil(parse_config(spec(data, **WHOLE_ANSWERS, teacher=teacher, **changes)), tmp_path / "served")
    notices = {event["code"]: event for event in events(tmp_path / "served", "notice")}
    assert "gives the log-probabilities of 10 tokens" in notices["teacher_scores"]["message"]
    assert notices["teacher_scores_partial"]["data"]["num_unscored_refinements"] == 0
    distil(
        parse_config(spec(data, **WHOLE_ANSWERS, **changes)),
        tmp_path / "local",
        resume_from=checkpoint_folder(tmp_path / "served", 0),
    )
    assert metric(tmp_path / "local", "loss") == pytest.approx(metric(tmp_path / "served", "loss"), rel=2e-2)


def test_a_server_that_scores_too_few_tokens_is_reported_before_sampling(url: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=8, heldout=4)
    loss = {**LOSS, "teacher_top_k": 21}
    teacher = {"endpoint": "big", "base_url": url, **endpoint(url, "vllm")}
    with pytest.raises(TeacherRefusedError, match=r"loss\.teacher_top_k = 21.*max.* 20"):
        distil(parse_config(spec(data, **WHOLE_ANSWERS, teacher=teacher, loss=loss)), tmp_path / "served")
    assert not (tmp_path / "served" / "rounds").exists()


def test_a_job_goes_through_service_and_worker(url: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=24, heldout=8)
    named = {
        "scores": {"url": url, **endpoint(url, "vllm"), "max_logprobs": 10},
        "text": {"url": url, **endpoint(url, "openai")},
    }
    settings = {"TRD_TEACHER_ENDPOINTS": json.dumps(named), VARIABLE: KEY, "OMP_NUM_THREADS": "1"}
    losses = {}
    with local_service(tmp_path / "service", settings=settings) as service:
        client = service.client
        dataset = client.datasets.upload(data / "train.jsonl").id
        for name in named:
            body = {
                "mode": "trd",
                "student": "tiny-student",
                "teacher": {"endpoint": name},
                "dataset": dataset,
                "task": "exact",
                "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 96},
                "refine": {"max_prompt_tokens": 192, "max_new_tokens": 96},
                "lora": None,
                "optim": {"learning_rate": 1e-3, "batch_size": 8},
                "evaluation": {"holdout": 0.2, "k": 2},
            }
            job = client.jobs.wait(client.jobs.create(body).id, max_seconds=300)
            assert job.status == "succeeded", (job.error, [e.message for e in client.events.list(job.id)])
            losses[name] = job.spec["loss"]
            said = " ".join(event.message for event in client.events.list(job.id))
            assert KEY not in said
            if name == "text":
                assert "if the answers of teacher endpoint text carry log-probabilities" in said
                assert "gives the log-probabilities of 20 tokens per position" in said
    assert (losses["scores"]["support"], losses["scores"]["teacher_top_k"]) == ("top_k", 10)
    assert (losses["text"]["support"], losses["text"]["teacher_top_k"]) == ("top_k", 20)
    left = [path for path in (tmp_path / "service").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert left == []
