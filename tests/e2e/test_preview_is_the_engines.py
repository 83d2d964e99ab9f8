"""The prompts that the service previews are those of the engine, token for token, for every shape of row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from tests.service.conftest import AUTHORIZED, settings_in
from tests.trd_engine import rows
from trd_engine.config import parse_config
from trd_engine.models.loading import load_tokenizer, make_prompt_builder
from trd_engine.tasks.registry import load_task

MODELS = Path(__file__).parents[2] / "testbed" / "models"
STUDENT = MODELS / "tiny-student"
MAX_TOKENS = 40
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("math", {"problem": "1+1", "answer": 2, "solution": "1+1 is \\boxed{2}"}),
    "GSM8K": ("math", {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4 of them\n#### 4"}),
    "choice": ("choice", {"question": "Which?", "choices": ["this", "that"], "answer": 1}),
    "labelled choice": (
        "choice",
        {"question": "Which?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answer": "A"},
    ),
    "chat": (
        "exact",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "2"},
            ]
        },
    ),
    "generated": ("reasoning_gym", {"question": "1+1", "answer": "2", "metadata": {"source_dataset": "chain_sum"}}),
    "starter code": ("code", rows.TACO_CALL | {"input_output": json.dumps(rows.TACO_CALL["input_output"])}),
    "HumanEval": ("code", rows.HUMANEVAL),
    "MBPP": ("code", rows.MBPP),
}


@pytest.fixture
def client(tmp_path: Path, sqlite_url: str) -> TestClient:
    return TestClient(create_app(settings_in(tmp_path, MODELS, sqlite_url)), headers=AUTHORIZED)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("is_parquet", [False, True])
def test_a_previewed_prompt_is_the_jobs(
    name: str, is_parquet: bool, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRD_ENABLE_CODE_TASKS", "1")
    task, row = ROWS[name]
    path = rows.write_jsonl(tmp_path / "rows.jsonl", [row])
    if is_parquet:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    kind = "application/vnd.apache.parquet" if is_parquet else "application/jsonl"
    with client:
        uploaded = client.post("/datasets", content=path.read_bytes(), headers={"content-type": kind})
        assert uploaded.status_code == 201, uploaded.text
        query = {"model": "tiny-student", "task": task, "refine_max_prompt_tokens": MAX_TOKENS}
        answer = client.get(f"/datasets/{uploaded.json()['id']}/preview", params=query)
        assert answer.status_code == 200, answer.text
    (shown,) = answer.json()["data"]
    (problem,) = rows.load_rows(tmp_path, row, task=task)
    spec = {"mode": "opd", "student": str(STUDENT), "teacher": str(STUDENT), "dataset": {"path": str(path)}}
    builder = make_prompt_builder(
        load_tokenizer(str(STUDENT)), str(STUDENT), load_task(task).prompts, parse_config({**spec, "task": task})
    )
    expected = [
        builder.solve(problem),
        builder.privileged(problem, max_tokens=MAX_TOKENS).token_ids,
        builder.refine(problem, "", privileged=False, max_tokens=MAX_TOKENS).token_ids,
        builder.refine(problem, "", privileged=True, max_tokens=MAX_TOKENS).token_ids,
    ]
    assert [tuple(prompt["token_ids"]) for prompt in shown["prompts"]] == expected
    assert (shown["id"], shown["has_solution"]) == (problem.id, problem.solution is not None)
    assert uploaded.json()["has_solutions"] == shown["has_solution"]


def test_a_row_that_the_task_cannot_read_is_refused_as_in_a_job(client: TestClient, tmp_path: Path) -> None:
    with client:
        content = "\n".join(json.dumps({"question": "1+1", "answer": answer}) for answer in ("B", "2"))
        uploaded = client.post("/datasets", content=content, headers={"content-type": "application/jsonl"}).json()
        query = {"model": "tiny-student", "task": "choice"}
        answer = client.get(f"/datasets/{uploaded['id']}/preview", params=query)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "dataset_invalid", "task")
    assert error["message"].startswith('row 2: answer = "2": names no option')
