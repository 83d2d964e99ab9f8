"""``GET /datasets/{id}/preview``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.service.conftest import MakeClient
from tests.service.records import upload

MODELS = Path(__file__).parents[2] / "testbed" / "models"
ROWS = [
    {"problem": "29+2*9", "answer": "79", "solution": "31*9|79|\\boxed{79}"},
    {"problem": "11+2" + "+3" * 40, "answer": "33"},
]


@pytest.fixture
def tiny(make_client: MakeClient, sqlite_url: str) -> TestClient:
    return make_client(sqlite_url, models=f"{MODELS}/*,Org/Hub-Model@v1")


def test_each_prompt_is_shown_with_its_tokens_and_what_would_go(tiny: TestClient) -> None:
    dataset = tiny.post(
        "/datasets", content="\n".join(map(json.dumps, ROWS)), headers={"content-type": "application/jsonl"}
    ).json()["id"]
    query = {"model": "tiny-student", "teacher": "tiny-teacher", "task": "exact", "max_prompt_tokens": 64}
    answer = tiny.get(f"/datasets/{dataset}/preview", params={**query, "refine_max_prompt_tokens": 20})
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["data"]
    assert (first["row"], first["dropped"], first["is_exact"], first["has_solution"]) == (1, None, True, True)
    solve, privileged, refine, privileged_refine = first["prompts"]
    assert solve["text"] == "<user>29+2*9<assistant>"
    assert solve["num_tokens"] == len(solve["token_ids"]) == 8
    assert solve["attempt_tokens_that_fit"] is None
    assert privileged["text"].startswith("<user>29+2*9R31*9")
    assert privileged["num_tokens"] <= 20
    assert privileged["num_cut_solution_tokens"] > 0
    assert refine["attempt_tokens_that_fit"] == 20 - refine["num_tokens"]
    assert privileged_refine["kind"] == "privileged_refine"
    assert "> sampling.max_prompt_tokens = 64" in second["dropped"]


@pytest.mark.parametrize("teacher", [{"teacher": "tiny-teacher"}, {}], ids=["a teacher", "self-taught"])
def test_budgets_are_those_that_a_job_of_the_models_has(tiny: TestClient, teacher: dict[str, str]) -> None:
    dataset = upload(tiny)
    job = {"mode": "trd", "student": "tiny-student", **teacher, "dataset": dataset, "task": "exact"}
    spec = tiny.post("/jobs?dry_run=true", json=job).json()["spec"]
    assert spec["refine"]["max_prompt_tokens"] < 1024, "lowered to the models' context"
    query = {"model": "tiny-student", **teacher, "task": "exact"}
    (row,) = tiny.get(f"/datasets/{dataset}/preview", params={**query, "limit": 1}).json()["data"]
    refine = next(prompt for prompt in row["prompts"] if prompt["kind"] == "refine")
    assert refine["num_tokens"] + refine["attempt_tokens_that_fit"] == spec["refine"]["max_prompt_tokens"]


def test_a_model_without_prompts_here_is_refused_with_the_reason(tiny: TestClient) -> None:
    dataset = upload(tiny)
    for name, words in (("nobody", "no such model here"), ("Org/Hub-Model", "only workers fetch it")):
        answer = tiny.get(f"/datasets/{dataset}/preview", params={"model": name})
        assert answer.status_code == 422
        assert (answer.json()["error"]["param"], words in answer.json()["error"]["message"]) == ("model", True)


def test_a_folder_without_a_chat_template_is_refused(client: TestClient) -> None:
    answer = client.get(f"/datasets/{upload(client)}/preview", params={"model": "small"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "model_refused"
