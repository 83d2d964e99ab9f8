"""The engine's process: what its errors are called, and what it does with a spec that it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worker.workbench import eventually
from trd_engine.runtime.errors import ContextTooLongError
from worker.engine_child import failure_code, report_failure
from worker.engine_process import StopRequest
from worker.failures import DISK_FULL_EXIT_CODE

ROOT = Path(__file__).parents[2]


def caused_by(cause: BaseException) -> BaseException:
    error = RuntimeError("while saving")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContextTooLongError("too long"), "context_too_long"),
        (caused_by(ContextTooLongError("too long")), "context_too_long"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (ValueError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (caused_by(OSError(errno.EDQUOT, "quota")), "disk_full"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "gpu_fault"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "gpu_fault"),
        (RuntimeError("CUDA error: unspecified launch failure"), "gpu_fault"),
        (RuntimeError("No CUDA GPUs are available: no CUDA-capable device is detected"), "gpu_fault"),
        (RuntimeError("cuBLAS error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), "gpu_fault"),
        (caused_by(RuntimeError("NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO)")), "gpu_fault"),
        (ValueError("EngineCore encountered an issue. See stack trace (above) for the root cause."), "gpu_fault"),
        (RuntimeError("Executor failed."), "gpu_fault"),
        (RuntimeError("cancelled"), "gpu_fault"),
        (TimeoutError("RPC call to execute_model timed out."), "gpu_fault"),
        (RuntimeError("the verifier was cancelled"), "internal_error"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "device_unavailable"),
        (
            ValueError("No available memory for the cache blocks. Try increasing a setting"),
            "out_of_memory",
        ),
        (ValueError("Free memory on device cuda:0 (9.1/79.2 GiB) on startup is less than desired"), "out_of_memory"),
        (RuntimeError("CUDA error: device-side assert triggered"), "internal_error"),
        (RuntimeError("CUDA error: invalid configuration argument"), "internal_error"),
        (RuntimeError("gloo/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation"), "collective_timeout"),
        (RuntimeError("timed out waiting for the verifier"), "internal_error"),
        (KeyError("surprise"), "internal_error"),
        (OSError(errno.EACCES, "denied"), "internal_error"),
    ],
)
def test_errors_have_stable_codes(error: BaseException, code: str) -> None:
    assert failure_code(error) == code


def test_one_of_several_processes_reports_the_reason_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    out_dir = tmp_path / "run"
    report_failure(out_dir, RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    report_failure(out_dir, ContextTooLongError("too long"))
    report_failure(out_dir, ContextTooLongError("too long"))
    (line,) = (out_dir / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == "context_too_long"


def reported(out_dir: Path) -> dict[str, str]:
    (*_, line) = (out_dir / "events.jsonl").read_text().splitlines()
    event: dict[str, str] = json.loads(line)
    return event


WORKER_DIED = """
(Worker_TP0 pid=71) ERROR 11-28 20:11:02 [multiproc_executor.py:871] WorkerProc hit an exception.
(Worker_TP0 pid=71) Traceback (most recent call last):
(Worker_TP0 pid=71)   File "gpu_model_runner.py", line 3112, in execute_model
(Worker_TP0 pid=71) {cause}
(EngineCore_0 pid=60) ERROR 11-28 20:11:02 [core.py:901] EngineCore failed
(EngineCore_0 pid=60) RuntimeError: Worker failed with error 'see the stack trace above for the root cause'
vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above).
"""


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "gpu_fault"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        ("ValueError: To serve at least one request with the model's max seq len", "out_of_memory"),
        ("ValueError: The model's architecture is not known", "gpu_fault"),
    ],
)
@pytest.mark.parametrize(
    "summary",
    [
        "EngineCore encountered an issue. See",
        "Engine core initialization failed. See",
        "WorkerProc initialization failed due to an exception in a background process. See",
    ],
)
def test_an_engine_process_that_died_is_reported_with_its_first_cause(
    tmp_path: Path, cause: str, code: str, summary: str
) -> None:
    (tmp_path / "engine.log").write_text(WORKER_DIED.format(cause=cause))
    report_failure(tmp_path / "run", RuntimeError(f"{summary} root cause above."))
    event = reported(tmp_path / "run")
    assert event["code"] == code
    assert event["message"] == f"a process of vLLM ended: {cause}"


def test_an_engine_process_that_died_without_a_word(tmp_path: Path) -> None:
    report_failure(tmp_path / "run", RuntimeError("Executor failed."))
    assert reported(tmp_path / "run")["message"] == "a process of vLLM ended: Executor failed."


WORKER_KILLED = """
ERROR 11-28 20:11:02 [multiproc_executor.py:308] Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting
ERROR:engine:the run failed
RuntimeError: cancelled
"""


def test_an_engine_process_that_was_killed_is_reported_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text(WORKER_KILLED)
    report_failure(tmp_path / "run", RuntimeError("cancelled"))
    died = "Worker proc VllmWorker-0 died unexpectedly (exit code: -9)"
    assert reported(tmp_path / "run")["message"] == f"a process of vLLM ended: {died}"


def test_a_rank_that_waited_too_long_names_itself_and_the_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    monkeypatch.setenv("RANK", "3")
    (tmp_path / "run").mkdir()
    phases = [{"type": "phase", "phase": name} for name in ("rollout", "refining")]
    (tmp_path / "run" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in phases))
    report_failure(tmp_path / "run", RuntimeError("[gloo/x.cc:78] Timed out waiting 4000ms for recv operation"))
    event = reported(tmp_path / "run")
    assert event["code"] == "collective_timeout"
    assert event["message"].startswith("rank 3 waited for the other processes in phase refining: ")


def test_a_fault_that_all_ranks_share_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what says that another rank has ended is left to that rank."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    report_failure(tmp_path / "run", RuntimeError("NCCL error: unhandled cuda error"))
    assert reported(tmp_path / "run")["code"] == "gpu_fault"


def test_a_stop_is_a_signal_or_a_file(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        by_signal = StopRequest(tmp_path)
        assert not by_signal()
        os.kill(os.getpid(), signal.SIGTERM)
        eventually(by_signal)
        by_file = StopRequest(tmp_path)
        assert not by_file()
        (tmp_path / "stop").touch()
        assert by_file()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_a_refused_spec_is_a_failed_event_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"mode": "opd", "student": "/nowhere", "teacher": "/nowhere"}))
    result = subprocess.run(
        [sys.executable, "-m", "worker.engine_child", str(tmp_path)], cwd=ROOT, capture_output=True, timeout=120
    )
    assert result.returncode == 1
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["type"], last["code"]) == ("failed", "invalid_spec")
    assert "dataset" in last["message"]
    (tmp_path / "failed").unlink()
    (tmp_path / "run" / "events.jsonl").unlink()
    (tmp_path / "run" / "events.jsonl").symlink_to("/dev/full")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "worker.engine_child", str(tmp_path)], cwd=ROOT, stderr=full, timeout=120
        )
    assert result.returncode == DISK_FULL_EXIT_CODE


CRASHES = """
import ctypes, sys
from worker import engine_child

def crash_in_a_library(folder, stop):
    ctypes.string_at(0)

engine_child.run_attempt_folder = crash_in_a_library
engine_child.main(["."])
"""


def test_a_crash_in_native_code_leaves_the_stack_in_the_log() -> None:
    result = subprocess.run([sys.executable, "-c", CRASHES], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in result.stderr
    assert "in crash_in_a_library" in result.stderr


RANK = """
import json, os, pathlib, signal, sys, time
sys.path.insert(0, sys.argv[2])
from worker import engine_child

def scripted(folder, stop):
    if sys.argv[3] == "fails":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # or torchrun waits 30 seconds before it kills rank 0
    (folder / f"rank{os.environ['RANK']}").touch()
    if sys.argv[3] == "fails" and os.environ["RANK"] == "0":
        time.sleep(60)
    while not (folder / "rank0").exists():
        time.sleep(0.05)
    if sys.argv[3] == "fails":
        return 1
    while not stop():
        time.sleep(0.05)
    return 75

engine_child.run_attempt_folder = scripted
sys.exit(engine_child.main([sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("what", "code"), [("stops", 75), ("fails", 1)])
def test_two_ranks_under_torchrun_stop_and_fail_as_one_process_does(tmp_path: Path, what: str, code: int) -> None:
    """A real torchrun; each rank is `engine_child.main` around a scripted run."""
    from worker.engine_process import EngineProcess, engine_command

    (tmp_path / "rank.py").write_text(RANK)
    command = engine_command(tmp_path, 2)
    command[command.index("worker.engine_child") - 1 :] = [str(tmp_path / "rank.py"), str(tmp_path), str(ROOT), what]
    with EngineProcess.start(command, tmp_path, devices=2) as process:
        eventually(lambda: (tmp_path / "rank0").exists() and (tmp_path / "rank1").exists(), seconds=90)
        if what == "stops":
            process.ask_to_stop()
        eventually(lambda: process.poll() is not None, seconds=60)
        assert process.poll() == code
