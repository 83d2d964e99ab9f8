"""Files up and down, keys, models, the state of the service."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from client import Client
from client.cli.job_argument import _complete
from contract.tables import Worker
from service.readiness import LOOK_SECONDS
from tests.client.breaking_proxy import BreakingProxy
from tests.client.cli.conftest import Run
from tests.client.conftest import RunningService
from tests.service.records import add_checkpoint

WEIGHTS = random.Random(3).randbytes(3_000_000)
FILES = {"model/model.safetensors": WEIGHTS, "model/config.json": b"{}", "state/state.pt": b"state"}


def test_datasets_are_uploaded_listed_shown_and_deleted(run: Run, rows_file: Path) -> None:
    made = run("datasets", "upload", str(rows_file))
    dataset = made.out.strip()
    assert "40 rows, with solutions" in made.err
    assert dataset in run("datasets", "list").out
    assert run("datasets", "list", "-n", "1", "--json").json["data"][0]["id"] == dataset
    shown = run("datasets", "show", dataset, "--json").json
    assert shown["sha256"] in run("datasets", "show", dataset).out
    assert run("datasets", "delete", dataset, "-y").out.strip() == f"{dataset} is deleted"
    assert run("datasets", "show", dataset).code == 4
    assert run("datasets", "upload", "absent.jsonl").code == 1


def test_a_pipe_is_no_file(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows")
    writer = os.open(tmp_path / "rows", os.O_RDWR)
    done = run("datasets", "upload", "rows")
    os.close(writer)
    assert done.code == 1
    assert "rows is a stream, not a file" in done.err


def test_bad_rows_are_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"problem": "1", "answer": "1"}\n{"problem": "2"}\n{"answer": "3"}\nnot json\n')
    done = run("datasets", "upload", str(path))
    assert done.code == 5
    assert [line[4:11] for line in done.err.splitlines() if line.startswith("  - ")] == [
        "row 2: ",
        "row 3: ",
        "row 4: ",
    ]
    assert "hint: nothing of the file was stored" in done.err
    error = json.loads(run("datasets", "upload", str(path), "--json").err)["error"]
    assert [fault["row"] for fault in error["errors"]] == [2, 3, 4]


def test_a_checkpoint_is_downloaded_again_from_where_it_broke_off(
    run: Run,
    service: RunningService,
    proxy: BreakingProxy,
    job_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_checkpoint(service.database, service.storage_dir, job_id, 4, FILES)
    monkeypatch.setenv("TRD_URL", proxy.url)
    monkeypatch.setattr("client.downloads.MAX_FAILURES", 0)
    proxy.cut_after.append(1_000_000)
    broken = run("download", job_id, "--parallel", "1")
    assert broken.code == 7
    assert not (tmp_path / f"{job_id}-step-4" / "model.safetensors").exists()
    before = proxy.num_answer_bytes
    done = run("download", job_id)
    assert done.code == 0, done.err
    folder = tmp_path / done.out.strip()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert proxy.num_answer_bytes - before < 2_100_000
    whole = run("download", job_id, "--all", "--step", "4", "-o", "whole", "--json").json
    assert (whole["num_bytes"], len(whole["files"])) == (sum(map(len, FILES.values())), 3)
    assert (tmp_path / "whole" / "state" / "state.pt").read_bytes() == b"state"
    assert run("download", job_id, "--folder", "adapter").code == 1
    assert run("download", job_id, "--step", "5").code == 4


def test_keys_are_made_listed_and_revoked(run: Run, service: RunningService) -> None:
    made = run("keys", "create", "a reader", "--scope", "read", "--owner", "someone", "--json").json
    with Client(service.url, made["key"]) as reader:
        assert list(reader.jobs.list()) == []
    assert run("keys", "create", "plain").out.startswith("trd_")
    assert made["id"] in run("keys", "list").out
    replaced = run("keys", "rotate", made["id"], "--grace", "0", "--json").json
    assert (replaced["owner"], replaced["scopes"]) == ("someone", ["read"])
    assert "key.rotate" in run("keys", "audit", "--target", made["id"]).out
    assert run("keys", "rotate", made["id"]).code == 4
    assert "is revoked" in run("keys", "revoke", made["id"]).out
    revoked = {row["id"]: row["revoked_at"] for row in run("keys", "list", "--json").json["data"]}
    assert revoked[made["id"]] is not None
    assert run("keys", "revoke", "key_absent").code == 4


def test_models_and_the_state_of_the_service(run: Run, service: RunningService) -> None:
    assert "small-teacher" in run("models").out
    assert {row["id"] for row in run("models", "--json").json["data"]} == {"small", "small-teacher"}
    assert run("status", "--json").json["database"] == "ok"
    assert "accepted" in run("status").out
    now = datetime.now(UTC)
    failed = {"check": "compiler", "status": "fail", "message": "there is no C compiler", "remedy": "install gcc"}
    values: dict[str, Any] = {"queues": ["trd-default"], "device_kind": "h100", "findings": [failed], "started_at": now}
    with service.database.write() as session:
        session.add(Worker(name="host:1:a", expires_at=now + timedelta(seconds=60), **values))
    time.sleep(LOOK_SECONDS)
    shown = " ".join(run("status").out.split())
    assert "worker host:1:a, h100, 0 checks passed" in shown
    assert "failed compiler: there is no C compiler; install gcc" in shown
    with service.database.write() as session:
        session.execute(delete(Worker))
    probes = service.storage_dir / "readiness"
    probes.rename(probes.with_name("away"))
    probes.write_text("in the way")
    time.sleep(LOOK_SECONDS)
    unready = run("status")
    probes.unlink()
    probes.with_name("away").rename(probes)
    assert unready.code == 1
    assert "not writable" in unready.out


def test_the_version_is_shown_without_a_service(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRD_URL", "nonsense")
    assert run("--version").out.strip() == version("trd-service")


def _as_bash_asks(line: str) -> list[str]:
    """Return what the installed completion gives bash for the last word; which shell runs the tests makes no
    difference."""
    words = line.split()
    asked = {"_TRD_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    trd = Path(sys.executable).with_name("trd")
    done = subprocess.run([trd], env={**os.environ, **asked}, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


@pytest.mark.usefixtures("run")
def test_the_shell_completes_job_ids(job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _complete("la") == [("latest", "the newest job")]
    assert job_id in [candidate for candidate, _ in _complete("job_")]
    assert _complete(job_id)[0][1].startswith("queued")
    assert job_id in _as_bash_asks("trd show job_")
    monkeypatch.setenv("TRD_URL", "http://127.0.0.1:1")
    assert _complete("job_") == []
