"""Memory and time in the answer to a dry run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.events import NewEvent, append_events
from contract.job_state import JobStatus
from service.settings import Settings
from tests.service.conftest import AUTHORIZED, MakeClient
from tests.service.finished_job import MODELS
from tests.service.records import add_evaluation, add_trajectory, database_of, job_body, set_job, submit

COMMITTED = Path(__file__).parents[2] / "testbed" / "models"
SECONDS = {"preparing": 3.0, "rollout": 8.0, "refining": 6.0, "training": 10.0, "evaluating": 5.0}
CHANGES: dict[str, Any] = {
    **MODELS,
    "task": "exact",
    "evaluation": {"holdout": 0.25, "k": 2},
    "optim": {"batch_size": 8},
}


@pytest.fixture
def tiny_client(make_client: MakeClient, database_url: str, models_dir: Path) -> TestClient:
    """The application with the committed models, some that hold a few words only, and one on a hub."""
    return make_client(database_url, models=f"{COMMITTED}/*,{models_dir}/*,Org/Hub-Model")


def dry_run(client: TestClient, **changes: Any) -> dict[str, Any]:
    body = job_body(client, **{**CHANGES, **changes})
    response = client.post("/jobs?dry_run=true", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def succeeded(client: TestClient, seconds: dict[str, float], **changes: Any) -> str:
    """Add a job that took so long for 4 trajectories, 2 steps and an evaluation of 40 samples."""
    attempt = changes.pop("attempt", 1)
    job_id = submit(client, **{**CHANGES, **changes})
    for position in range(4):
        add_trajectory(client, job_id, position)
    add_evaluation(client, job_id, 0, 0.5)
    with database_of(client).write() as session:
        ended = {"status": "succeeded", "summary": {"seconds_by_phase": seconds}}
        append_events(session, job_id, NewEvent("status", "The run is over.", ended))
    set_job(client, job_id, status=JobStatus.SUCCEEDED, attempt=attempt, step=2)
    return job_id


def test_without_like_jobs_the_time_is_calibrated(tiny_client: TestClient) -> None:
    forecast = dry_run(tiny_client)
    assert forecast["duration"]["time_source"] == "calibration"
    assert forecast["duration"]["num_like_jobs"] == 0
    phases = {one["phase"]: one for one in forecast["phases"]}
    assert forecast["duration"]["seconds"] == pytest.approx(sum(one["seconds"] or 0 for one in phases.values()))
    budget = forecast["spec"]["sampling"]["max_new_tokens"]
    assert phases["rollout"]["seconds"] == pytest.approx(2 * 434_016 * 30 * budget * 5e-10)
    assert any("a GPU is far faster" in note for note in forecast["estimate_notes"])
    training = phases["training"]["device_bytes"]
    assert phases["training"]["total_bytes"] == sum(training.values())
    assert training["teacher_weights"] == 4 * 434_016, "fp32 on a CPU"
    assert forecast["memory"]["peak_bytes"] == max(one["total_bytes"] for one in phases.values())
    assert (forecast["memory"]["device"], forecast["memory"]["device_bytes"]) == ("cpu", None)


def test_an_operator_names_the_kind_of_device(make_client: MakeClient, database_url: str) -> None:
    client = make_client(database_url, models=f"{COMMITTED}/*", device_kind="h100")
    forecast = dry_run(client)
    phases = {one["phase"]: one for one in forecast["phases"]}
    assert list(phases) == ["preparing", "evaluating", "rollout", "refining", "diagnosing", "training", "saving"]
    assert forecast["duration"]["time_source"] == "peak_figures"
    assert forecast["duration"]["evaluation_share"] == pytest.approx(
        phases["evaluating"]["seconds"] / forecast["duration"]["seconds"], rel=1e-3
    )
    assert phases["rollout"]["max_tokens"] == forecast["estimate"]["max_rollout_tokens"]
    assert phases["rollout"]["num_tokens"] == phases["rollout"]["max_tokens"] // 2
    assert phases["rollout"]["total_bytes"] == forecast["memory"]["device_bytes"] == 79 * 2**30
    assert phases["training"]["host_bytes"] > phases["rollout"]["host_bytes"] > 0, "engines that sleep"
    assert phases["saving"]["disk_bytes"] > 0
    assert "not measured" in forecast["estimate_notes"][-1]


def test_what_does_not_fit_is_said_with_what_to_change(
    make_client: MakeClient, sqlite_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "large"
    shutil.copytree(COMMITTED / "tiny-student", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config))
    client = make_client(sqlite_url, models=f"{COMMITTED}/*,{folder}", device_kind="h100")
    notes = "\n".join(dry_run(client, student="large", lora=None)["estimate_notes"])
    assert "GB of each GPU, and h100 has 85; use LoRA, more devices" in notes
    assert "use LoRA, a smaller model or more devices" in notes


def test_another_gpu_counts_with_its_memory_and_an_assumed_speed(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, models=f"{COMMITTED}/*", device_kind="gpu-16gib")
    forecast = dry_run(client)
    assert (forecast["memory"]["device"], forecast["memory"]["device_bytes"]) == ("gpu-16.0gib", 16 * 2**30)
    assert "of l4, an assumption: the speed of gpu-16.0gib is not known" in forecast["estimate_notes"][-1]


def test_a_kind_of_device_that_is_not_known_is_refused_with_the_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRD_DEVICE_KIND", "h1000")
    wanted = r"TRD_DEVICE_KIND.*'h1000' is not known: use one of cpu, h100, .*, or gpu-24gb"
    with pytest.raises(ValueError, match=wanted):
        Settings.from_environment()


def test_similar_jobs_give_the_time_of_each_phase(tiny_client: TestClient) -> None:
    succeeded(tiny_client, SECONDS)
    succeeded(tiny_client, {phase: 3 * seconds for phase, seconds in SECONDS.items()})
    forecast = dry_run(tiny_client)
    assert (forecast["estimate"]["num_trajectories"], forecast["estimate"]["num_evaluation_samples"]) == (
        30,
        10 * 2 * 2,
    )
    duration = forecast["duration"]
    assert (duration["time_source"], duration["num_like_jobs"]) == ("history", 2)
    # The median of 1 and 3 is 2: a trajectory took 8 / 4 s, a trained one 10 / 4, a sample 5 / 40, preparing 3 a run.
    assert {one["phase"]: one["seconds"] for one in forecast["phases"]} == {
        "preparing": 2 * 3.0,
        "rollout": 2 * 30 * 2.0,
        "refining": 2 * 30 * 1.5,
        "diagnosing": None,
        "training": 2 * 30 * 2.5,
        "evaluating": 2 * 40 * 0.125,
        "saving": None,
    }
    assert duration["seconds"] == 376.0
    assert duration["evaluation_share"] == pytest.approx(10 / 376)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "tiny-student-slips"},
        {"teacher": "tiny-student"},
        {"mode": "opd"},
        {"lora": None},
        {"sampling": {"max_new_tokens": 17}},
        {"attempt": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_jobs_are_not_used(tiny_client: TestClient, changes: dict[str, Any]) -> None:
    succeeded(tiny_client, SECONDS, **changes)
    assert dry_run(tiny_client)["duration"]["time_source"] == "calibration"


def test_another_owners_jobs_do_not_show(tiny_client: TestClient) -> None:
    succeeded(tiny_client, SECONDS)
    made = tiny_client.post("/keys", json={"name": "k", "owner": "somebody", "scopes": ["read", "submit"]})
    assert made.status_code == 201, made.text
    tiny_client.headers["authorization"] = f"Bearer {made.json()['key']}"
    assert dry_run(tiny_client)["duration"]["time_source"] == "calibration"
    tiny_client.headers["authorization"] = AUTHORIZED["authorization"]
    assert dry_run(tiny_client)["duration"]["time_source"] == "history"


def test_a_model_on_a_hub_has_no_estimate_and_a_note(tiny_client: TestClient) -> None:
    forecast = dry_run(tiny_client, student="Org/Hub-Model", teacher="tiny-teacher")
    assert (forecast["memory"], forecast["duration"]) == (None, None)
    assert forecast["estimate"]["num_trajectories"] == 30
    assert forecast["estimate_notes"] == [
        "student Org/Hub-Model: it is on a hub, and its sizes are unknown here; no memory estimate"
    ]


def test_a_configuration_without_sizes_has_no_estimate_and_a_note(tiny_client: TestClient) -> None:
    forecast = dry_run(tiny_client, student="small", teacher="small-teacher")
    assert (forecast["memory"], forecast["duration"]) == (None, None)
    assert "config.json does not contain its sizes" in forecast["estimate_notes"][0]


def test_unknown_data_has_memory_but_no_time(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, models=f"{COMMITTED}/*", hub_datasets=frozenset({"org/good"}))
    forecast = dry_run(client, dataset={"hub": "org/good"})
    assert (forecast["estimate"], forecast["duration"]) == (None, None)
    assert forecast["memory"]["peak_bytes"] > 0
