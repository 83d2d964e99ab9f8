"""Jobs from the command line: submitted, listed, shown, led, with exit codes that scripts branch on."""

from __future__ import annotations

import io
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client import Client
from client.jobs import JobFilter
from contract.job_state import JobStatus
from service.jobs.fleet import LOOK_SECONDS
from tests.client.cli.conftest import Run
from tests.client.conftest import RunningService, spec_of
from tests.servers import free_port
from tests.service.records import add_checkpoint, add_evaluation, finish_job, set_job

SPEC = """
mode: trd
student: small
teacher: small-teacher
optim: {learning_rate: 1e-3, batch_size: 4}
name: "2026-11-24"
"""


@pytest.fixture
def spec_file(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(SPEC)
    return str(path)


def test_a_spec_is_submitted_with_a_file_of_problems(run: Run, trd: Client, spec_file: str, rows_file: Path) -> None:
    done = run("submit", spec_file, "--dataset", str(rows_file), "--set", "optim.epochs=3", "-s", "tags=[cli, yaml]")
    assert done.code == 0, done.err
    job = trd.jobs.get(done.out.strip())
    assert (job.name, job.tags, job.status) == ("2026-11-24", ["cli", "yaml"], JobStatus.QUEUED)
    optim = job.spec["optim"]
    assert (optim["learning_rate"], optim["batch_size"], optim["epochs"]) == (0.001, 4, 3)
    assert "40 rows" in done.err
    assert f"trd watch {job.id}" in done.err
    wait = "no live worker serves the queue trd-default: a job waits until a worker comes that can run it"
    assert wait in " ".join(done.err.split())
    dry = run("submit", spec_file, "--dataset", str(rows_file), "--dry-run")
    assert wait in " ".join(dry.out.split())


def test_a_spec_may_be_json_or_come_from_a_pipe(run: Run, trd: Client, tmp_path: Path, rows_file: Path) -> None:
    dataset = trd.datasets.upload(rows_file).id
    path = tmp_path / "job.json"
    path.write_text(json.dumps(spec_of(dataset)))
    from_file = run("submit", str(path), "--json", "--idempotency-key", "from the shell")
    assert from_file.json["status"] == "queued"
    again = run("submit", "-", "--json", "--idempotency-key", "from the shell", stdin=path.read_text())
    assert again.json["id"] == from_file.json["id"]


def test_a_dry_run_shows_and_makes_nothing(run: Run, trd: Client, spec_file: str, rows_file: Path) -> None:
    dataset = trd.datasets.upload(rows_file).id
    shown = run("submit", spec_file, "--dataset", dataset, "--dry-run", "--set", "tags=[cli-dry]")
    assert shown.code == 0
    assert [line.split() for line in shown.out.splitlines() if line.startswith("optim.batch_size")] == [
        ["optim.batch_size", "4"]
    ]
    assert "num problems" in shown.out
    assert "max rollout tokens" in shown.out
    assert "its config.json does not contain its sizes" in shown.out
    result = run("submit", spec_file, "--dataset", dataset, "--dry-run", "--json").json
    assert result["estimate"]["num_problems"] == 40
    assert (result["memory"], result["duration"]) == (None, None)
    assert list(trd.jobs.list(JobFilter(tag="cli-dry"))) == []


def test_a_dry_run_says_what_it_uploaded(run: Run, trd: Client, spec_file: str, rows_file: Path) -> None:
    done = run("submit", spec_file, "--dataset", str(rows_file), "--dry-run")
    newest = next(trd.datasets.list(num_wanted=1)).id
    assert f"next time use --dataset {newest}" in done.err
    assert "no job was created" in done.out
    assert "next time use" not in run("submit", spec_file, "--dataset", newest, "--dry-run").err


@pytest.mark.parametrize(
    ("content", "arguments", "code", "words"),
    [
        ("mode: [", (), 1, "line 1, column"),
        ("- mode", (), 1, "a spec is a mapping"),
        (SPEC, ("--set", "optim"), 2, "not key.path=value"),
        (SPEC, ("--set", "optim.x=["), 2, "not valid YAML"),
        (SPEC, ("--dataset", "absent.jsonl"), 4, "neither a file nor the id of a dataset"),
    ],
)
def test_an_unreadable_spec_is_reported(
    run: Run, tmp_path: Path, content: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(content)
    done = run("submit", str(path), *arguments)
    assert done.code == code
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_number_that_is_too_large_is_reported(run: Run, spec_file: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"optim": {"learning_rate": 1e400}}')
    assert "1e400 is too large for a number" in run("submit", "spec.json").err
    done = run("submit", spec_file, "--set", "optim.learning_rate=1e400", "--set", "mode=trd")
    assert done.code == 2
    assert "1e400 is too large for a number" in done.err
    assert run("submit", spec_file, "--set", f"seed={'9' * 60_000}").code == 2


def test_all_faults_of_a_spec_are_listed(run: Run, spec_file: str) -> None:
    done = run("submit", spec_file, "-s", "dataset=ds_1", "-s", "optim.epochs=0", "-s", "optim.lr=1")
    assert done.code == 5
    assert done.err.count("  - ") == 2
    assert "(and 1 more fault, in errors)" in done.err
    assert "optim.lr: unknown field" in done.err
    result = run("submit", spec_file, "-s", "dataset=ds_1", "-s", "optim.epochs=0", "--json")
    assert json.loads(result.err)["error"]["param"] == "optim.epochs"
    assert result.out == ""


def test_jobs_are_listed_and_filtered(run: Run, trd: Client, rows_file: Path) -> None:
    spec = {**spec_of(trd.datasets.upload(rows_file).id), "tags": ["cli-list"]}
    made = [trd.jobs.create({**spec, "name": name}) for name in ("one", "two")]
    trd.jobs.pause(made[0].id)
    listed = run("jobs", "--tag", "cli-list").out
    assert listed.index("two") < listed.index("one")
    assert all(job.id in listed for job in made)
    assert [row["id"] for row in run("jobs", "--tag", "cli-list", "--status", "paused", "--json").json["data"]] == [
        made[0].id
    ]
    assert len(run("jobs", "--tag", "cli-list", "-n", "1", "--json").json["data"]) == 1
    assert "trd submit" in run("jobs", "--tag", "nobody-has-it").out
    today = f"{datetime.now():%Y-%m-%d}"
    for options, found in (
        (["--name", "TW", "--since", today, "--until", today], [made[1].id]),
        (["--name", "three"], []),
        (["--until", "2026-01-01"], []),
    ):
        rows = run("jobs", "--tag", "cli-list", *options, "--json").json["data"]
        assert [row["id"] for row in rows] == found, options
    assert run("show", "latest", "--json").json["id"] == made[1].id
    for option in (["--since", "0001-01-01"], ["--until", "9999-12-31"]):
        assert "leave the option out" in run("jobs", *option).err


def test_a_job_is_shown_whole(run: Run, trd: Client, service: RunningService, job_id: str) -> None:
    add_evaluation(service.database, job_id, 0, 0.25)
    add_checkpoint(service.database, service.storage_dir, job_id, 7, {"model/x": b"12345"})
    set_job(service.database, job_id, error_code="disk_full", error_message="full", error_hint="free some space")
    finish_job(service.database, job_id, JobStatus.FAILED)
    shown = run("show", job_id, "--spec")
    for words in ("failed", "disk_full: full", "free some space", "25.0 %", "15.0 … 35.0", "5 B", '"weight_decay"'):
        assert words in shown.out, words
    result = run("show", job_id, "--json").json
    assert (result["evaluations"][0]["avg_at_k"], result["checkpoints"][0]["step"]) == (0.25, 7)


def test_a_job_is_led_through_its_life(run: Run, job_id: str) -> None:
    for command, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert run(command, job_id).out.strip() == f"{job_id} is {status}"
        assert run(command, job_id, "--json").json["status"] == status
    refused = run("pause", job_id)
    assert (refused.code, "resume, delete" in refused.err) == (5, True)
    cloned = run("clone", job_id, "optim.learning_rate=1e-4", "name=slower", "--json").json
    assert (cloned["cloned_from"], cloned["name"]) == (job_id, "slower")
    assert cloned["spec"]["optim"]["learning_rate"] == 1e-4
    assert run("delete", job_id).code == 1, "asked, and nobody answered"
    assert run("show", job_id).code == 0
    assert run("delete", job_id, "--yes").out.strip() == f"{job_id} is deleted"
    assert run("show", job_id).code == 4


def test_an_output_that_lacks_a_character_is_reported(run: Run, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("clone", job_id, "name=für").code == 0
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    done = run("jobs")
    assert done.code == 1
    assert "the output's encoding, ascii, lacks a character" in done.err
    assert "PYTHONIOENCODING=utf-8" in done.err


def test_exit_codes_say_what_went_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("show", "job_absent").code == 4
    assert "`trd jobs` lists yours" in run("show", "nonsense").err
    assert run("show").code == 2
    assert run("no-such-command").code == 2
    result = run("show", "job_absent", "--json")
    assert json.loads(result.err)["error"] | {"message": "", "request_id": ""} == {
        "message": "",
        "hint": "`trd jobs` lists yours",
        "exit_code": 4,
        "status": 404,
        "type": "invalid_request_error",
        "code": "job_not_found",
        "param": "job_id",
        "request_id": "",
        "errors": [],
    }
    monkeypatch.setenv("TRD_API_KEY", "not-a-key-of-this-service")
    refused = run("jobs")
    assert (refused.code, refused.out) == (6, "")
    assert "hint: set TRD_API_KEY" in refused.err
    monkeypatch.setenv("TRD_URL", f"http://127.0.0.1:{free_port()}")
    unreachable = run("jobs")
    assert unreachable.code == 7
    assert "trd up" in unreachable.err
    monkeypatch.setenv("TRD_URL", "nonsense")
    assert run("jobs").code == 6


def test_a_waiting_job_shows_when_it_is_expected(run: Run, trd: Client, job_id: str, service: RunningService) -> None:
    busy = trd.jobs.clone(job_id).id
    for waiting in (job_id, busy):
        set_job(service.database, waiting, queue="of-its-own")
    assert "not known: no live worker serves the queue of-its-own" in run("show", job_id).out
    lives_until = datetime.now(UTC) + timedelta(minutes=5)
    set_job(service.database, busy, status=JobStatus.RUNNING, eta_seconds=7200.0, lease_expires_at=lives_until)
    time.sleep(LOOK_SECONDS)
    job = trd.jobs.get(job_id)
    assert job.expected_start_at is not None
    assert abs(job.expected_start_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)
    assert job.expected_finish_at is None, "no like job has ended"
    (line,) = [line for line in run("show", job_id).out.splitlines() if line.startswith("starts")]
    assert f"about {job.expected_start_at.astimezone():%Y-%m-%d}" in line
    (line,) = [line for line in run("show", job_id).out.splitlines() if line.startswith("finishes")]
    assert "not known: no similar job of its owner has succeeded" in line
    set_job(service.database, busy, status=JobStatus.CANCELLED, finished_at=datetime.now(UTC))
    run("pause", job_id)
    assert "starts" not in run("show", job_id).out, "it does not wait"
