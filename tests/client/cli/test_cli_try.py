"""Chat with a checkpoint: a real small model in a child process."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from client import Client
from tests.client.cli.conftest import Run
from tests.client.conftest import RunningService
from tests.service.records import add_checkpoint

TEACHER = Path(__file__).parents[3] / "testbed" / "models" / "tiny-teacher"


def test_a_folder_answers(run: Run) -> None:
    done = run("try", str(TEACHER), "-p", "1+2", "-p", "2*3", "--json")
    assert done.code == 0, done.err
    assert all(re.search(r"\\boxed\{\d+\}$", line["answer"]) for line in done.lines)
    assert all(line["num_tokens"] > 0 and not line["is_truncated"] for line in done.lines)


def test_a_jobs_checkpoint_is_fetched_and_answers_a_pipe(
    run: Run, trd: Client, service: RunningService, job_id: str, tmp_path: Path
) -> None:
    files = {f"model/{path.name}": path.read_bytes() for path in TEACHER.iterdir() if path.is_file()}
    add_checkpoint(service.database, service.storage_dir, job_id, 4, {**files, "state/x": b"not fetched"})
    done = run("try", job_id, "--raw", "--max-new-tokens", "3", stdin="<user>1+2<assistant>\n")
    assert done.code == 0, done.err
    assert "cut off after 3 tokens" in done.err
    kept = tmp_path / "data" / "tried" / job_id / "step-4"
    assert {path.name for path in kept.iterdir()} == {path.name for path in TEACHER.iterdir() if path.is_file()}


def test_a_folder_that_is_absent_or_cannot_be_loaded_is_an_error(run: Run, tmp_path: Path) -> None:
    absent = run("try", "./absent", "-p", "x")
    assert (absent.code, "neither a folder nor the id of a job" in absent.err) == (4, True)
    shutil.copytree(TEACHER, tmp_path / "code")
    config = tmp_path / "code" / "config.json"
    config.write_text(config.read_text().replace("{", '{"auto_map": {"AutoConfig": "evil.Evil"},', 1))
    refused = run("try", "code", "-p", "x")
    assert (refused.code, "never run" in refused.err) == (1, True)
