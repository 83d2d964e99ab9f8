"""A job with a served teacher: its loss is what the endpoint can give, and the job says so."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.server_groups import SamplerPool, TeacherEndpoint
from tests.service.conftest import MakeClient
from tests.service.records import job_body

ENDPOINTS = {
    "scores": TeacherEndpoint(url="https://scores.test/v1", model="m", api="vllm", max_logprobs=20),
    "text": TeacherEndpoint(url="https://text.test/v1", model="m", api_key_env="TEXT_API_KEY"),
    "short": TeacherEndpoint(url="https://short.test/v1", model="m", api="vllm", context_tokens=700),
}


@pytest.fixture
def served_client(make_client: MakeClient, sqlite_url: str) -> TestClient:
    return make_client(sqlite_url, teacher_endpoints=ENDPOINTS)


def submitted(client: TestClient, name: str, **changes: Any) -> dict[str, Any]:
    response = client.post("/jobs", json=job_body(client, teacher={"endpoint": name}, **changes))
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def messages(client: TestClient, job: dict[str, Any]) -> str:
    return " ".join(event["message"] for event in client.get(f"/jobs/{job['id']}/events").json()["data"])


def refused(client: TestClient, name: str, **changes: Any) -> dict[str, Any]:
    response = client.post("/jobs", json=job_body(client, teacher={"endpoint": name}, **changes))
    assert response.status_code == 422, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_where_it_scores_the_loss_is_on_what_it_serves(served_client: TestClient) -> None:
    job = submitted(served_client, "scores")
    loss = job["spec"]["loss"]
    assert (loss["divergence"], loss["support"], loss["teacher_top_k"]) == ("forward_kl", "top_k", 20)
    assert job["spec"]["teacher"] == {"endpoint": "scores"}
    assert "teacher endpoint scores scores at most 20 tokens per position" in messages(served_client, job)


def test_where_it_may_the_loss_is_on_its_answers_or_the_cross_entropy_and_the_job_says_so(
    served_client: TestClient,
) -> None:
    for loss in ({}, {"divergence": "forward_kl"}, {"support": "top_k"}):
        job = submitted(served_client, "text", loss=loss)
        found = job["spec"]["loss"]
        assert (found["divergence"], found["support"], found["teacher_top_k"]) == ("forward_kl", "top_k", 20)
    said = messages(served_client, job)
    assert "if the answers of teacher endpoint text carry log-probabilities, else loss.divergence = cross" in said
    assert "TEXT_API_KEY" not in said


@pytest.mark.parametrize("loss", [{"divergence": "cross_entropy"}, {"teacher_context": "vanilla"}, {"support": "full"}])
def test_where_its_answers_are_not_to_teach_the_loss_is_the_cross_entropy(
    served_client: TestClient, loss: dict[str, Any]
) -> None:
    assert submitted(served_client, "text", loss=loss)["spec"]["loss"]["divergence"] == "cross_entropy"


def test_nothing_of_where_it_is_gets_out(served_client: TestClient) -> None:
    job = submitted(served_client, "text", loss={"teacher_context": "vanilla"})
    said = messages(served_client, job)
    assert "loss.divergence = cross_entropy, on the refined trajectory: teacher endpoint text returns no" in said
    assert "TEXT_API_KEY" not in said
    assert "text.test" not in said + str(job)


def test_a_field_given_by_the_user_stays(served_client: TestClient) -> None:
    loss = {"divergence": "reverse_kl", "teacher_top_k": 7, "token_clip": 0.1}
    found = submitted(served_client, "scores", loss=loss)["spec"]["loss"]
    assert {name: found[name] for name in loss} == loss
    explicit = submitted(served_client, "scores", loss={"divergence": "cross_entropy"})
    assert explicit["spec"]["loss"]["divergence"] == "cross_entropy"
    assert submitted(served_client, "scores", mode="opd")["spec"]["loss"]["support"] == "top_k"


@pytest.mark.parametrize(
    ("name", "changes", "param", "words"),
    [
        ("other", {}, "teacher.endpoint", "there are: scores, short, text"),
        ("text", {"mode": "opd"}, "teacher.endpoint", "mode opd needs them to score the rollout; use mode trd"),
        ("text", {"loss": {"divergence": "reverse_kl"}}, "loss.divergence", "leave it out"),
        ("text", {"loss": {"reverse_after": 0.5}}, "loss.reverse_after", "for any text but its answers"),
        ("text", {"loss": {"teacher_top_k": 21}}, "loss.teacher_top_k", "set it to at most 20"),
        (
            "text",
            {"loss": {"support": "top_k", "teacher_context": "vanilla"}},
            "loss.support",
            "returns no log-probabilities; leave it out",
        ),
        (
            "text",
            {"loss": {"temperature": 2.0}},
            "loss.temperature",
            "the cross-entropy has no such setting; leave it out",
        ),
        (
            "text",
            {"loss": {"token_weights": {"drift_gamma": 0.5}}},
            "loss.token_weights.drift_gamma",
            "the cross-entropy does not have; leave it out",
        ),
        ("scores", {"loss": {"support": "full"}}, "loss.support", "set it to top_k"),
        ("scores", {"loss": {"divergence": "jsd"}}, "loss.divergence", "which JSD needs"),
        ("scores", {"loss": {"teacher_top_k": 21}}, "loss.teacher_top_k", "set it to at most 20"),
        (
            "short",
            {"refine": {"max_prompt_tokens": 600, "max_new_tokens": 100}},
            "refine.max_new_tokens",
            "the context of the teacher endpoint short is 699",
        ),
    ],
)
def test_what_it_cannot_give_is_refused(
    served_client: TestClient, name: str, changes: dict[str, Any], param: str, words: str
) -> None:
    error = refused(served_client, name, **changes)
    assert error["param"] == param
    assert words in error["message"]


def test_each_device_asks_for_its_own(make_client: MakeClient, sqlite_url: str) -> None:
    endpoints = {**ENDPOINTS, "narrow": ENDPOINTS["scores"].model_copy(update={"max_concurrency": 2})}
    client = make_client(sqlite_url, teacher_endpoints=endpoints, max_devices=4)
    assert submitted(client, "narrow", devices=2)["spec"]["devices"] == 2
    error = refused(client, "narrow", devices=3)
    assert error["param"] == "devices"
    assert "narrow takes 2 requests at a time" in error["message"]


def test_budgets_fit_its_context(served_client: TestClient) -> None:
    spec = submitted(served_client, "short")["spec"]
    assert spec["refine"]["max_prompt_tokens"] + spec["refine"]["max_new_tokens"] <= 699


POOLS = {
    "fleet": SamplerPool(url="https://fleet.test/v1", model="small", max_concurrency=2),
    "judges": SamplerPool(url="https://judges.test/v1", model="small-teacher"),
}


def test_a_job_names_pools_that_serve_its_models(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, sampler_pools=POOLS, max_devices=4)
    fleet, judges = {"sampling": {"pool": "fleet"}}, {"refine": {"pool": "judges"}}
    body = job_body(client, mode="trd", teacher="small-teacher", **fleet, **judges)
    spec = client.post("/jobs", json=body).json()["spec"]
    assert (spec["sampling"]["pool"], spec["refine"]["pool"]) == ("fleet", "judges")
    for changes, words in (
        ({"sampling": {"pool": "other"}}, "sampling.pool = other: the operator configured no such pool; pools with"),
        ({"sampling": {"pool": "judges"}}, "its servers have small-teacher, and the job samples small"),
        ({"refine": {}}, "refine.pool = null: servers of the teacher are for jobs with sampling.pool .*name a pool"),
        ({"mode": "opd"}, r"refine\.pool = judges: .*leave it out"),
        ({"lora": None}, "sampling.pool = fleet: servers take LoRA adapters"),
        ({"sampling": {"pool": "fleet", "engine": "transformers"}}, "its servers sample, and no engine of the job"),
        ({"devices": 3}, "devices = 3: pool fleet takes 2 requests at a time"),
        ({"sampling": {"pool": "https://here.test/v1"}}, "pattern"),
    ):
        response = client.post("/jobs", json={**body, **changes})
        assert response.status_code == 422, response.text
        assert re.search(words, response.text), response.text
