"""A finished run's checkpoint is pushed to a hub; a hub that is away or refuses touches nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from contract.job_state import JobStatus
from tests.worker.scripted_engine import Plan
from tests.worker.scripted_hub import ScriptedHub, serving_hub
from tests.worker.workbench import Workbench
from worker.supervisor import run_next

TOKEN, OTHER_TOKEN = "hf_token-of-ann", "hf_token-that-expired"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    monkeypatch.setenv("ANNS_HF_TOKEN", TOKEN)
    monkeypatch.setenv("OLD_HF_TOKEN", OTHER_TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # tests download nothing
    with serving_hub(TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def push_to(repo: str, **changes: Any) -> dict[str, Any]:
    return {"type": "hub", "repo": repo, "api_key_env": "ANNS_HF_TOKEN", **changes}


def run_job(bench: Workbench, *integrations: dict[str, Any], plan: Plan | None = None, **settings: Any) -> str:
    """Run a job to its end; return its id."""
    job_id = bench.add_job(spec={"integrations": list(integrations)})
    secrets = frozenset({"ANNS_HF_TOKEN", "OLD_HF_TOKEN"})
    wanted = {"hub_network": "loopback", "hub_push_seconds": 120.0, "integration_secrets": secrets, **settings}
    assert run_next(bench.slot(plan, **wanted))
    return job_id


def messages(bench: Workbench, job_id: str, code: str) -> list[str]:
    return [event.message for event in bench.events(job_id, "notice") if event.data["code"] == code]


@pytest.mark.slow
def test_the_last_checkpoint_is_pushed_after_an_outage(sqlite_bench: Workbench, hub: ScriptedHub) -> None:
    hub.num_failures = 1
    refused = push_to("ann/refused", api_key_env="OLD_HF_TOKEN")
    not_listed = push_to("ann/not-listed", api_key_env="HOME")
    no_adapter = push_to("ann/no-adapter", weights="adapter")
    job_id = run_job(sqlite_bench, push_to("ann/student"), refused, not_listed, no_adapter)
    job = sqlite_bench.job(job_id)
    assert job.status == JobStatus.SUCCEEDED
    assert hub.repos == {"ann/student": {"README.md": b"---\n---\n# card\n", "model.safetensors": b"weights " * 4}}
    assert hub.is_private["ann/student"]
    assert hub.messages == [f"The last checkpoint of {job_id}"]
    (failing,) = messages(sqlite_bench, job_id, "push_failing")
    assert "503" in failing
    (pushed,) = messages(sqlite_bench, job_id, "checkpoint_pushed")
    assert f"{hub.url}/ann/student/commit/{'0' * 40}" in pushed
    told = "\n".join(messages(sqlite_bench, job_id, "push_refused"))
    assert "401" in told
    assert "no folder adapter/" in told
    (not_started,) = messages(sqlite_bench, job_id, "tracker_not_started")
    assert "HOME: the operator does not list it" in not_started
    assert not any(token in event.message for event in sqlite_bench.events(job_id) for token in (TOKEN, OTHER_TOKEN))


@pytest.mark.slow
def test_a_hub_that_stays_away_holds_the_job_for_a_time_only(sqlite_bench: Workbench, hub: ScriptedHub) -> None:
    hub.num_failures = 1_000_000
    job_id = run_job(sqlite_bench, push_to("ann/student"), hub_push_seconds=5.0)
    assert sqlite_bench.job(job_id).status == JobStatus.SUCCEEDED
    assert messages(sqlite_bench, job_id, "push_incomplete") == [
        "ann/student did not get the checkpoint in time; the job has it."
    ]
    assert sqlite_bench.checkpoint_steps(job_id)[-1] == 4


@pytest.mark.slow
def test_uploads_stay_within_the_network_and_failed_runs_push_nothing(
    sqlite_bench: Workbench, hub: ScriptedHub
) -> None:
    hub.upload_url = "http://10.0.0.1/lfs"
    job_id = run_job(sqlite_bench, push_to("ann/student"))
    assert sqlite_bench.job(job_id).status == JobStatus.SUCCEEDED
    (refused,) = messages(sqlite_bench, job_id, "push_refused")
    assert "leads outside its network" in refused
    assert hub.repos == {"ann/student": {}}
    failed = run_job(sqlite_bench, push_to("ann/failed"), plan=Plan(failure=("spec_invalid", "no")))
    assert sqlite_bench.job(failed).status == JobStatus.FAILED
    assert not [code for code in sqlite_bench.codes(failed) if "push" in code]
    assert "ann/failed" not in hub.repos
