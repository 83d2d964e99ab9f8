"""A worker examines its machine when it starts, and its row says what failed while it lives."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import select

from contract.routing import Needs, Offer
from contract.server_groups import TeacherEndpoint
from contract.tables import Worker
from tests.worker.workbench import Workbench
from worker import machine_check
from worker.machine_check import check_machine, host_bytes, offer_of, start_machine_check
from worker.reaper import Reaper
from worker.supervisor import run_next


def rows(bench: Workbench) -> dict[str, Worker]:
    with bench.database.read() as session:
        return {worker.name: worker for worker in session.scalars(select(Worker))}


def test_findings_are_announced_once_there_are_any(bench: Workbench) -> None:
    slot = bench.slot()
    reaper = Reaper(slot, lambda *_: None)
    reaper.turn()
    assert (rows(bench)[slot.name].findings, rows(bench)[slot.name].device_kind) == (None, None), "not checked yet"
    figures = {"check": "device kind", "status": "pass", "message": "cpu", "figures": {}}
    slot.findings = [figures, {"check": "disk", "status": "fail", "message": "full", "figures": {}}]
    reaper.turn()
    worker = rows(bench)[slot.name]
    assert (worker.findings, worker.device_kind) == (slot.findings, "cpu")
    assert worker.queues == list(slot.settings.queues)
    assert Offer.read(worker.queues, worker.offer) == offer_of(slot), "a claim holds to what is announced"


def test_a_planted_fault_is_found_and_announced(sqlite_bench: Workbench) -> None:
    bench = sqlite_bench
    slot = bench.slot()
    reaper = Reaper(slot, lambda *_: None)
    slot.settings.data_dir.mkdir(parents=True, exist_ok=True)
    slot.settings.scratch_dir.write_text("in the way of the folder of runs")
    start_machine_check(slot).join(120)
    reaper.turn()
    worker = rows(bench)[slot.name]
    assert worker.queues == list(slot.settings.queues)
    assert worker.device_kind == "cpu"
    found = {finding["check"]: finding for finding in worker.findings or []}
    assert [name for name, finding in found.items() if finding["status"] == "fail"] == ["disk"]
    assert "FileExistsError" in found["disk"]["message"]
    assert found["device"]["status"] == "pass"
    offer = Offer.read(worker.queues, worker.offer)
    assert offer == offer_of(slot), "a claim holds to what is announced"
    assert (offer.device_kind, offer.num_devices, offer.num_nodes) == ("cpu", None, 1)
    assert offer.models is not None
    assert offer.models >= {"tiny-student", "tiny-teacher"}
    assert offer.host_bytes is not None
    assert offer.host_bytes > 2**30


def test_a_worker_offers_the_models_that_its_machine_has(sqlite_bench: Workbench, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "here"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    endpoint = TeacherEndpoint(url="https://teacher.example/v1", model="m")
    models = f"{tmp_path}/models/*,gone={tmp_path}/gone,Org/Hub-Model@v1"
    slot = sqlite_bench.slot(models=models, teacher_endpoints={"served": endpoint})
    assert offer_of(slot).models == {"here", "Org/Hub-Model", "endpoint:served"}
    (folder / "config.json").unlink()
    assert offer_of(slot).models == {"Org/Hub-Model", "endpoint:served"}, "found again at every turn"


def test_a_worker_of_a_cluster_offers_what_its_operator_says_of_it(sqlite_bench: Workbench) -> None:
    slot = sqlite_bench.slot(launcher="ray", devices_per_node=8, nodes=4)
    slot.findings = [{"check": "device kind", "status": "pass", "message": "cpu", "figures": {}}]
    offer = offer_of(slot)
    assert (offer.num_nodes, offer.num_devices) == (4, 8)
    assert (offer.device_kind, offer.device_bytes, offer.host_bytes) == (None, None, None), (
        "its own machine runs nothing"
    )


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine_check, "_MEMORY_LIMITS", (tmp_path / "absent", limit))
    limit.write_text("max\n")
    whole = host_bytes()
    limit.write_text("1000000000\n")
    assert host_bytes() == 1_000_000_000 < whole


def test_a_worker_leaves_a_job_that_it_cannot_run(bench: Workbench) -> None:
    slot = bench.slot(models="Org/Other@v1")
    needs = Needs(models=("tiny-student", "tiny-teacher")).model_dump_json()
    foreign, own = bench.add_job(needs=needs), bench.add_job()
    assert run_next(slot)
    assert not run_next(slot)
    assert (bench.job(foreign).status, bench.attempts(foreign)) == ("queued", [])
    assert bench.job(own).attempt > 0
    assert run_next(bench.slot())
    assert bench.job(foreign).status == "succeeded"


def test_ended_workers_are_forgotten(bench: Workbench) -> None:
    ended, living = bench.slot(reaper_seconds=0.05), bench.slot()
    Reaper(ended, lambda *_: None).turn()
    time.sleep(0.3)
    Reaper(living, lambda *_: None).turn()
    assert set(rows(bench)) == {living.name}


def test_a_check_that_hangs_or_does_not_start_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "CHECK_SECONDS", 0.01)
    (finding,) = check_machine(tmp_path)
    assert (finding["check"], finding["status"]) == ("doctor", "fail")
    assert "timed out" in finding["message"]
    monkeypatch.setattr(machine_check, "CHECK_SECONDS", 60.0)
    monkeypatch.setattr(machine_check.sys, "executable", "/absent/python")
    (finding,) = check_machine(tmp_path)
    assert (finding["check"], finding["status"]) == ("doctor", "fail")


def test_no_job_starts_while_a_gpu_is_examined(
    sqlite_bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check's process holds some of the GPU's memory, which an engine that starts would measure."""
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / "nvidia0").touch()
    monkeypatch.setattr(machine_check, "_DEVICE_FILES", devices)
    slot, could_start = sqlite_bench.slot(), []

    def check(folder: Path) -> list[dict[str, str]]:
        with slot.taken() as is_mine:
            could_start.append(is_mine)
        return []

    monkeypatch.setattr(machine_check, "check_machine", check)
    start_machine_check(slot).join(30)
    with slot.taken() as is_mine:
        could_start.append(is_mine)
    assert could_start == [False, True]
