"""A worker examines its machine when it starts, and its row says what failed while it lives."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import select

from contract.tables import Worker
from tests.worker.workbench import Workbench
from worker import machine_check
from worker.machine_check import check_machine, start_machine_check
from worker.reaper import Reaper


def rows(bench: Workbench) -> dict[str, Worker]:
    with bench.database.read() as session:
        return {worker.name: worker for worker in session.scalars(select(Worker))}


def test_a_planted_fault_is_found_and_announced(bench: Workbench, tmp_path: Path) -> None:
    slot = bench.slot()
    reaper = Reaper(slot, lambda *_: None)
    reaper.turn()
    assert (rows(bench)[slot.name].findings, rows(bench)[slot.name].device_kind) == (None, None), "not checked yet"
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


def test_ended_workers_are_forgotten(bench: Workbench) -> None:
    ended, living = bench.slot(reaper_seconds=0.05), bench.slot()
    Reaper(ended, lambda *_: None).turn()
    time.sleep(0.3)
    Reaper(living, lambda *_: None).turn()
    assert set(rows(bench)) == {living.name}


def test_a_check_that_hangs_or_does_not_start_is_a_failure(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_check, "CHECK_SECONDS", 0.01)
    (finding,) = check_machine(tmp_path)
    assert (finding["check"], finding["status"]) == ("doctor", "fail")
    assert "timed out" in finding["message"]
    monkeypatch.setattr(machine_check, "CHECK_SECONDS", 60.0)
    monkeypatch.setattr(machine_check.sys, "executable", "/absent/python")
    (finding,) = check_machine(tmp_path)
    assert (finding["check"], finding["status"]) == ("doctor", "fail")


def test_no_job_starts_while_a_gpu_is_examined(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check's process holds some of the GPU's memory, which an engine that starts would measure."""
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / "nvidia0").touch()
    monkeypatch.setattr(machine_check, "_DEVICE_FILES", devices)
    slot, could_start = bench.slot(), []

    def check(folder: Path) -> list[dict[str, str]]:
        with slot.taken() as is_mine:
            could_start.append(is_mine)
        return []

    monkeypatch.setattr(machine_check, "check_machine", check)
    start_machine_check(slot).join(30)
    with slot.taken() as is_mine:
        could_start.append(is_mine)
    assert could_start == [False, True]
