"""The prompts that the service previews are those of the engine, token for token, for every shape of row."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from tests.service.conftest import AUTHORIZED, settings_in
from tests.trd_engine import rows
from trd_data.check import first_problems
from trd_data.plain_json import agreed_json
from trd_engine.config import DataSource, parse_config
from trd_engine.data.problems import load_problems
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
    "Alpaca": ("math", {"instruction": "Add.", "input": "1 + 1", "output": "So \\boxed{2}"}),
    "ShareGPT": (
        "exact",
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
        },
    ),
    "verl": ("math", {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": 0.00001}}),
    "TRL": ("exact", {"prompt": "The sky is", "completion": " blue."}),
    "TRL chat": (
        "math",
        {
            "prompt": [{"role": "user", "content": "1+1?"}],
            "completion": [{"role": "assistant", "content": "#### 2"}],
        },
    ),
    "MATH": ("math", {"problem": "1+1?", "solution": "so \\boxed{2}", "level": "1", "type": "sums"}),
    "columns of options": ("choice", {"question": "Which?", "A": "this", "B": "that", "answer": "B"}),
    "choices under math": ("math", {"question": "Which?", "choices": ["this", "that"], "answer": 1}),
    "an unread column": ("math", {"problem": "1+1?", "context": "in binary", "answer": "10"}),
    "LiveCodeBench": (
        "code",
        {
            "question_content": "Add one.",
            "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]',
            "starter_code": "def f():",
        },
    ),
}
COLUMNS: dict[str, dict[str, str]] = {
    "plain": {"problem": "problem", "answer": "answer"},
    "verl": {"problem": "prompt.0.content", "answer": "reward_model.ground_truth"},
    "an unread column": {"instruction": "context", "input": "problem"},
}
"""Mappings of some rows' columns; the others have none."""


@pytest.fixture
def client(tmp_path: Path, sqlite_url: str) -> TestClient:
    return TestClient(create_app(settings_in(tmp_path, MODELS, sqlite_url)), headers=AUTHORIZED)


def content_of(rows_of_file: list[dict[str, Any]], kind: str) -> bytes:
    """Write the rows as a file of the format."""
    lines = "".join(json.dumps(row) + "\n" for row in rows_of_file).encode()
    if kind == "parquet":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of_file), buffer)
        return buffer.getvalue()
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["nr", *rows_of_file[0]])
        writer.writeheader()
        for number, row in enumerate(rows_of_file, start=1):
            cells = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
            writer.writerow({"nr": number, **cells})
        return text.getvalue().encode()
    contents = {"jsonl": lines, "gzip": gzip.compress(lines), "json": json.dumps(rows_of_file, indent=1).encode()}
    return contents[kind] if kind in contents else bytes(pyarrow.compress(lines, codec="zstd", asbytes=True))


TASKS = sorted({task for task, _ in ROWS.values()})
FILES: list[tuple[list[str], str, dict[str, str]]] = [
    *(([name for name, (of, _) in ROWS.items() if of == task], "jsonl", {}) for task in TASKS),
    *(([name], "parquet", {}) for name in ("plain", "verl", "labelled choice", "starter code")),
    *((["Alpaca"], kind, {}) for kind in ("csv", "json", "gzip", "zstd")),
    *(([name], kind, columns) for name, columns in COLUMNS.items() for kind in ("jsonl", "parquet")),
]


@pytest.mark.parametrize(("names", "kind", "columns"), FILES)
def test_previewed_prompts_are_the_jobs(
    names: list[str],
    kind: str,
    columns: dict[str, str],
    client: TestClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRD_ENABLE_CODE_TASKS", "1")
    task = ROWS[names[0]][0]
    path = tmp_path / "rows"
    path.write_bytes(content_of([ROWS[name][1] for name in names], kind))
    with client:
        uploaded = client.post(
            "/datasets",
            params={"columns": json.dumps(columns)} if columns else None,
            content=path.read_bytes(),
            headers={"content-type": "application/octet-stream"},
        )
        assert uploaded.status_code == 201, uploaded.text
        query = {"model": "tiny-student", "task": task, "refine_max_prompt_tokens": MAX_TOKENS, "limit": 20}
        answer = client.get(f"/datasets/{uploaded.json()['id']}/preview", params=query)
        assert answer.status_code == 200, answer.text
    problems = load_problems(DataSource(path=str(path), columns=columns), task).problems
    spec = {"mode": "opd", "student": str(STUDENT), "teacher": str(STUDENT), "dataset": {"path": str(path)}}
    builder = make_prompt_builder(
        load_tokenizer(str(STUDENT)), str(STUDENT), load_task(task).prompts, parse_config({**spec, "task": task})
    )
    assert len(problems) == len(names)
    for shown, problem in zip(answer.json()["data"], problems, strict=True):
        expected = [
            builder.solve(problem),
            builder.privileged(problem, max_tokens=MAX_TOKENS).token_ids,
            builder.refine(problem, "", privileged=False, max_tokens=MAX_TOKENS).token_ids,
            builder.refine(problem, "", privileged=True, max_tokens=MAX_TOKENS).token_ids,
        ]
        assert [tuple(prompt["token_ids"]) for prompt in shown["prompts"]] == expected
        assert (shown["id"], shown["has_solution"]) == (problem.id, problem.solution is not None)
        assert shown["is_exact"]


NO_CELLS = {"TRL chat", "verl"}
"""Rows whose prompt is a list, which a cell of CSV cannot tell from a text."""


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "json", "gzip", "zstd"])
def test_each_shape_means_the_same_in_every_format(kind: str, tmp_path: Path) -> None:
    """What the service shows (`first_problems`) is what the engine loads, and equal to the row as JSON."""
    for name, (task, row) in ROWS.items():
        if (kind == "csv" and name in NO_CELLS) or name == "generated":  # whose scorer is a process
            continue
        path = tmp_path / "rows"
        path.write_bytes(content_of([row], kind))
        with path.open("rb") as stream:
            ((_, shown),) = first_problems(stream, task, 2)
        (loaded,) = load_problems(DataSource(path=str(path)), task).problems
        (expected,) = rows.load_rows(tmp_path, row, task=task)
        assert shown == loaded, name
        assert agreed_json(asdict(loaded)) == agreed_json(asdict(expected)), name


def test_a_row_that_the_task_cannot_read_is_refused_as_in_a_job(client: TestClient, tmp_path: Path) -> None:
    with client:
        content = "\n".join(json.dumps({"question": "1+1", "answer": answer}) for answer in ("B", "2"))
        uploaded = client.post("/datasets", content=content, headers={"content-type": "application/jsonl"}).json()
        query = {"model": "tiny-student", "task": "choice"}
        answer = client.get(f"/datasets/{uploaded['id']}/preview", params=query)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "dataset_invalid", "task")
    assert error["message"].startswith('row 2: answer = "2": names no option')
