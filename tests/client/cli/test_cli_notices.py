"""Notices in the command line: on top, with what to do, and without what a terminal would obey."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client import Client
from tests.client.cli.conftest import Run
from tests.client.conftest import RunningService, spec_of
from tests.service.records import finish_job, set_job

NOTICE = {
    "code": "rollouts_cut",
    "message": "8 of 8 rollouts of the first round do not end \x1b[2Jbefore the limit",
    "remedy": "raise sampling.max_new_tokens",
    "count": 8,
    "example": "and \x9b31m so\non \x07",
}
SHOWN = (
    "! rollouts_cut (8): 8 of 8 rollouts of the first round do not end \N{REPLACEMENT CHARACTER}[2Jbefore the limit\n"
    "  example: and \N{REPLACEMENT CHARACTER}31m so on \N{REPLACEMENT CHARACTER}\n"
    "  what to do: raise sampling.max_new_tokens\n"
)


@pytest.fixture
def choices_file(tmp_path: Path) -> Path:
    rows = [
        {"problem": f"Which is {n}?", "choices": ["one", "two", f"{n}", "four"], "answer": "2", "solution": "2"}
        for n in range(20)
    ]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_notices_stand_on_top_of_a_job(run: Run, trd: Client, service: RunningService, job_id: str) -> None:
    set_job(service.database, job_id, notices=[NOTICE])
    assert run("show", job_id).out.startswith(SHOWN)
    assert run("show", job_id, "--json").json["notices"][0]["message"] == NOTICE["message"]
    finish_job(service.database, job_id)
    assert run("watch", job_id).out.startswith(SHOWN)


def test_an_uploads_notices_are_told_once(run: Run, choices_file: Path, tmp_path: Path) -> None:
    uploaded = run("datasets", "upload", str(choices_file))
    assert uploaded.err.count("! choices_unread") == 1
    assert "what to do: " in uploaded.err
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps({**spec_of("ds_1"), "dataset": None}))
    for arguments in (["--dry-run"], []):
        done = run("submit", str(spec), "--dataset", str(choices_file), *arguments)
        assert (done.code, (done.out + done.err).count("! choices_unread")) == (0, 1)
    refused = run("submit", str(spec), "--dataset", uploaded.out.strip(), "-s", "strict=true")
    assert refused.code != 0
    assert "strict = true: choices_unread" in refused.err
