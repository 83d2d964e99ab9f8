"""``trd up`` if it cannot start: the error comes at once, with a remedy. The end-to-end test shows that it works."""

from __future__ import annotations

import fcntl
import json
import socket
import stat
from pathlib import Path

import pytest

from client.cli.up import LOCK_FILE, banner
from client.settings import LocalService
from tests.client.cli.conftest import Run
from tests.service.conftest import ADMIN_KEY


def test_a_used_port_is_reported(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("up", "--port", str(taken.getsockname()[1]))
    assert done.code == 1
    assert "is not available" in done.err
    assert "trd up --port 0" in done.err


def test_a_second_service_on_a_folder_is_refused_before_the_first_has_an_address(run: Run, tmp_path: Path) -> None:
    with (tmp_path / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the first holds it while its API starts
        done = run("up", "--port", "0", "--data-dir", str(tmp_path))
        assert done.code == 1
        assert f"a service on {tmp_path} is already running, or" in done.err
        LocalService(url="http://127.0.0.1:1", api_key=ADMIN_KEY).save(tmp_path)
        assert "is already running at http://127.0.0.1:1" in run("up", "--data-dir", str(tmp_path)).err


def test_a_folder_that_cannot_be_made_is_reported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    done = run("up", "--data-dir", "file", "--json")
    assert done.code == 1
    assert json.loads(done.err)["error"]["message"] == "file: File exists"
    monkeypatch.setenv("TRD_DATA_DIR", "file/data")
    done = run("up")
    assert f"TRD_DATA_DIR = file/data: {tmp_path}/file is not a folder" in done.err
    assert "hint: correct the variable" in done.err


def test_an_api_that_does_not_start_is_reported_with_the_end_of_its_log(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRD_MAX_DEVICES", "0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    done = run("up", "--port", "0")
    assert done.code == 1
    assert "the API ended with exit code 1" in done.err
    assert "TRD_MAX_DEVICES" in done.err
    assert "DATABASE_URL: ignored" in done.err
    assert f"its log is {tmp_path / 'data' / 'api.log'}" in done.err
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert LocalService.of(tmp_path / "data") is None, "nobody is led to a service that never was"


def test_the_banner_says_how_another_terminal_finds_a_folder_of_another_name() -> None:
    service = LocalService(url="http://127.0.0.1:1", api_key=ADMIN_KEY)
    assert "another terminal: trd models" in banner(service, Path("data")).plain
    assert "another terminal: export TRD_DATA_DIR='my data', then trd models" in banner(service, Path("my data")).plain
