from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.tables import Dataset
from tests.service.conftest import MakeClient
from tests.service.records import context_of, job_body, upload


def refusal(client: TestClient, **changes: Any) -> dict[str, Any]:
    """Submit a job that must not be queued; return the error."""
    response = client.post("/jobs", json=job_body(client, **changes))
    assert response.status_code == 422, response.text
    assert client.get("/jobs").json()["data"] == []
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def test_a_model_that_is_not_there_is_refused_with_those_that_are(client: TestClient) -> None:
    error = refusal(client, student="Qwen/Qwen3-1.7B")
    assert (error["code"], error["param"]) == ("model_not_found", "student")
    assert error["message"] == (
        "student = Qwen/Qwen3-1.7B: there is no such model here; "
        "there are: foreign, large, needs-code, small, small-teacher, Org/Hub-Model"
    )
    assert refusal(client, teacher="../small")["param"] == "teacher"


def test_a_model_with_code_of_its_own_is_refused(client: TestClient) -> None:
    error = refusal(client, teacher="needs-code")
    assert (error["code"], error["param"]) == ("model_refused", "teacher")
    assert "auto_map" in error["message"]


def test_a_model_named_by_its_source_is_known_to_the_workers_by_its_name(client: TestClient, models_dir: Path) -> None:
    body = job_body(client, student=str(models_dir / "small"), teacher=str(models_dir / "small-teacher"))
    spec = client.post("/jobs", json=body).json()["spec"]
    assert (spec["student"], spec["teacher"]) == ("small", "small-teacher")


def test_tokenizers_that_differ_are_refused_with_the_token(client: TestClient) -> None:
    error = refusal(client, teacher="foreign")
    assert (error["code"], error["param"]) == ("tokenizer_mismatch", "teacher")
    assert "token 'a' is 0 in the student's vocabulary and is not in the teacher's" in error["message"]


def test_a_refine_budget_beyond_the_models_context_is_refused(client: TestClient) -> None:
    error = refusal(client, refine={"max_prompt_tokens": 18_432, "max_new_tokens": 16_384})
    assert (error["code"], error["param"]) == ("context_too_long", "refine.max_prompt_tokens")
    assert "18432" in error["message"]
    assert "teacher small-teacher is 2048" in error["message"]


def test_a_hub_model_is_left_to_the_worker(client: TestClient) -> None:
    body = job_body(client, student="Org/Hub-Model", teacher="large")
    spec = client.post("/jobs", json=body).json()["spec"]
    assert spec["sampling"]["max_new_tokens"] == 16_384


def test_more_devices_than_there_are_is_refused(client: TestClient, make_client: MakeClient, sqlite_url: str) -> None:
    error = refusal(client, devices=2)
    assert error["param"] == "devices"
    assert "at most 1" in error["message"]
    many = make_client(sqlite_url, max_devices=8)
    assert "at most 8" in refusal(many, devices=9)["message"]
    apart = refusal(many, devices=3, sampling={"placement": "separate", "tensor_parallel_size": 2})
    assert "at most 8; with its samplers this one needs 9" in apart["message"]
    job = many.post("/jobs", json=job_body(many, devices=2)).json()
    assert (job["spec"]["devices"], job["spec"]["queue"]) == (2, "trd-default-2")


def test_a_dataset_must_be_the_callers(client: TestClient) -> None:
    error = refusal(client, dataset="ds_00000000000000000000000000")
    assert (error["code"], error["param"]) == ("dataset_not_found", "dataset")
    deleted = upload(client)
    client.delete(f"/datasets/{deleted}")
    assert refusal(client, dataset=deleted)["code"] == "dataset_not_found"
    error = refusal(client, evaluation={"dataset": deleted})
    assert (error["code"], error["param"]) == ("dataset_not_found", "evaluation.dataset")


def test_a_student_that_teaches_itself_needs_every_solution(client: TestClient) -> None:
    rows = [f'{{"problem": "{i}", "answer": "{i}", "solution": "s"}}' for i in range(20)]
    rows[11] = '{"problem": "x", "answer": "y"}'
    dataset = upload(client, "\n\n".join(rows))
    for mode in ("opsd", "trd"):
        error = refusal(client, mode=mode, teacher=None, dataset=dataset)
        assert (error["code"], error["param"]) == ("dataset_lacks_solutions", "dataset")
        assert "row 23 has no solution" in error["message"], "blank lines count, as in an editor"
    assert client.post("/jobs", json=job_body(client, dataset=dataset)).status_code == 201


def test_the_row_without_a_solution_is_named_if_it_is_known(either_client: TestClient) -> None:
    rows = ['{"problem": "1", "answer": "1", "solution": "s"}', '{"problem": "2", "answer": "2"}']
    dataset = upload(either_client, "\n".join(rows))
    body = job_body(either_client, mode="opsd", teacher=None, dataset=dataset)
    for findings, place in (("of the upload", "row 2"), ("of an earlier version", "a row")):
        if findings == "of an earlier version":
            with context_of(either_client).database.write() as session:
                row = session.get(Dataset, dataset)
                assert row is not None
                row.findings = None
        for path in ("/jobs?dry_run=true", "/jobs"):
            error = either_client.post(path, json=body).json()["error"]
            assert (error["code"], error["param"]) == ("dataset_lacks_solutions", "dataset")
            assert f"{dataset}: {place} has no solution" in error["message"], findings


def test_problems_to_evaluate_on_need_no_solutions(client: TestClient) -> None:
    bare = upload(client, '{"problem": "x", "answer": "y"}\n')
    body = job_body(client, mode="opsd", teacher=None, evaluation={"dataset": bare})
    assert client.post("/jobs", json=body).status_code == 201


def test_one_problem_cannot_be_both_trained_and_held_out(client: TestClient) -> None:
    single = upload(client, '{"problem": "x", "answer": "y"}\n')
    error = refusal(client, dataset=single)
    assert (error["code"], error["param"]) == ("no_training_data", "evaluation.holdout")
    body = job_body(client, dataset=single, evaluation={"holdout": 0})
    assert client.post("/jobs", json=body).status_code == 201


def test_paths_lie_in_the_operators_roots(make_client: MakeClient, sqlite_url: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "rows.jsonl").write_text("{}")
    (tmp_path / "secret.jsonl").write_text("{}")
    (root / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "ring").symlink_to(root / "ring")
    client = make_client(sqlite_url, dataset_roots=(root,))
    for path in (
        "root/" + 300 * "a",
        "root/ring",
        "../secret.jsonl",
        "secret.jsonl",
        "root/../secret.jsonl",
        "root/link.jsonl",
        "root/none.jsonl",
    ):
        error = refusal(client, dataset={"path": str(tmp_path / path)})
        assert error["param"] == "dataset.path"
        assert "there is no such file" in error["message"]
    response = client.post("/jobs", json=job_body(client, dataset={"path": str(root / "rows.jsonl")}))
    assert response.status_code == 201
    assert refusal_without_roots(make_client, sqlite_url, root)


def refusal_without_roots(make_client: MakeClient, url: str, root: Path) -> bool:
    client = make_client(url)
    response = client.post("/jobs", json=job_body(client, dataset={"path": str(root / "rows.jsonl")}))
    return response.status_code == 422


def test_hub_ids_are_those_the_operator_allows(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, hub_datasets=frozenset({"org/good"}))
    error = refusal(client, dataset={"hub": "org/bad"})
    assert error["param"] == "dataset.hub"
    assert "allowed are: org/good" in error["message"]
    dry = client.post("/jobs?dry_run=true", json=job_body(client, dataset={"hub": "org/good"})).json()
    assert dry["estimate"] is None, "only the worker learns how many problems there are"


def test_generators_are_the_workers_to_know(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    body = job_body(client, dataset={"generator": "gcd", "size": 50})
    assert client.post("/jobs?dry_run=true", json=body).json()["estimate"]["num_problems"] == 50
