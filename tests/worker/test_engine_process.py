"""The child process: its command line, its group, its end with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.worker.workbench import eventually, process_exists
from worker.engine_process import EngineProcess, child_environment, engine_command

ROOT = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def exit_code(process: EngineProcess) -> int:
    eventually(lambda: process.poll() is not None)
    code = process.poll()
    assert code is not None
    return code


def test_one_device_is_one_process() -> None:
    assert engine_command(Path("/scratch/a"), 1) == [sys.executable, "-m", "worker.engine_child", "/scratch/a"]


def test_more_devices_are_one_torchrun() -> None:
    command = engine_command(Path("/scratch/a"), 4)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert "--nproc-per-node=4" in command
    assert "--standalone" in command
    assert command[-3:] == ["-m", "worker.engine_child", "/scratch/a"]


def test_the_child_gets_no_secrets_of_the_supervisors() -> None:
    given = {"DATABASE_URL": "postgresql://u:p@h/d", "BROKER_URL": "redis://h", "TRD_API_KEY": "key", "HF_TOKEN": "hf"}
    given |= {"STORAGE_URL": "s3://bucket", "AWS_SECRET_ACCESS_KEY": "secret"}
    given |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector", "OTEL_EXPORTER_OTLP_HEADERS": "key=secret"}
    environment = child_environment({**given, "PYTHONPATH": "/elsewhere"})
    assert set(environment) == {"HF_TOKEN", "PYTHONPATH", "PYTHONUNBUFFERED"}
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]


def test_exit_codes_and_output(tmp_path: Path) -> None:
    with EngineProcess.start(python("print('hello'); raise SystemExit(75)"), tmp_path) as process:
        assert exit_code(process) == 75
    assert (tmp_path / "engine.log").read_text() == "hello\n"


def test_a_child_leads_a_process_group_of_its_own(tmp_path: Path) -> None:
    with EngineProcess.start(python("import time; time.sleep(60)"), tmp_path) as process:
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
        process.kill()
        assert exit_code(process) == -signal.SIGKILL


def test_asking_is_a_signal_for_one_process_and_a_file_for_a_launcher(tmp_path: Path) -> None:
    listens = python(
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(75)); print('!'); time.sleep(60)"
    )
    with EngineProcess.start(listens, tmp_path) as process:
        eventually(lambda: (tmp_path / "engine.log").read_text() == "!\n")
        process.ask_to_stop()
        assert exit_code(process) == 75
    watches = f"""
import pathlib, time
folder = pathlib.Path({str(tmp_path)!r})
while not (folder / "stop").exists(): time.sleep(0.02)
(folder / "exit_code").write_text("75")
"""
    (tmp_path / "stop").unlink()
    with EngineProcess.start(python(watches), tmp_path, devices=2) as process:
        process.ask_to_stop()
        assert exit_code(process) == 75, "not the launcher's own 0"


def test_asking_a_child_that_has_gone_is_harmless(tmp_path: Path) -> None:
    with EngineProcess.start(python("pass"), tmp_path) as process:
        time.sleep(0.3)
        process.ask_to_stop()
        assert exit_code(process) == 0
        process.kill()


def test_leaving_the_context_leaves_no_child(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        EngineProcess.start(python("import time; time.sleep(60)"), tmp_path) as process,
    ):
        raise ZeroDivisionError
    assert not process_exists(process.pid)


@pytest.mark.parametrize("kind", ["the child", "a process before it knows its parent"])
def test_a_child_dies_with_its_supervisor(tmp_path: Path, kind: str) -> None:
    """The supervisor is killed with signal 9, once with the child up, once at the earliest moment."""
    supervisor_code = f"""
import pathlib, sys, time
from worker.engine_process import EngineProcess
command = [sys.executable, "-c", "print('up'); import time; time.sleep(60)"]
process = EngineProcess.start(command, pathlib.Path({str(tmp_path)!r}))
print(process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", supervisor_code], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        if kind == "the child":
            eventually(lambda: (tmp_path / "engine.log").read_text() == "up\n")
        supervisor.kill()
    eventually(lambda: not process_exists(pid))
