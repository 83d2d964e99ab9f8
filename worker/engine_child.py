"""``python -m worker.engine_child ATTEMPT_DIR``: the engine's process, the only module that imports `trd_engine`.

Reads ``spec.json`` and trains into ``run/``, resuming from ``resume/`` if that exists. Exit codes: 0 finished, 75
stopped on request, 1 failed, after a ``failed`` event, 74 failed, and the disk had no room for that event. Under
torchrun every rank is such a process.
"""

from __future__ import annotations

import atexit
import errno
import faulthandler
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from worker.bound_exec import die_with_parent
from worker.engine_process import EXIT_CODE_FILE, StopRequest
from worker.failures import DISK_FULL_EXIT_CODE, FINISHED_EXIT_CODE, STOPPED_EXIT_CODE, last_phase

logger = logging.getLogger("engine")

FAILED_EXIT_CODE = 1

_FAILED_FILE = "failed"
_COLLECTIVES = ("gloo", "nccl")
_LOST_PEER = ("closed by peer", "connection reset", "connection refused", "broken pipe", "remote process exited")
_HANG = ("timed out waiting", "collective operation timeout")
_GPU_FAULTS = (
    "illegal memory access",
    "uncorrectable ecc",
    "unspecified launch failure",
    "launch timed out",
    "misaligned address",
    "illegal instruction was encountered",
    "hardware stack error",
    "fallen off the bus",
    "gpu is lost",
    "no cuda-capable device",
    "unhandled cuda error",
    "execution_failed",  # of cuBLAS and cuDNN
)
"""Texts of CUDA errors that say nothing about the code. A device-side assert does, and is none of them."""
_OLD_GPU = ("no kernel image is available",)
"""Text of CUDA if torch was not built for the GPU's generation."""
_DEAD_ENGINE = (
    "enginecore encountered an issue",
    "engine core initialization failed",
    "workerproc initialization failed",
    "executor failed",
    "died unexpectedly",
    "worker failed with error",
    "rpc call to",  # … timed out: it hangs
)
"""Texts of vLLM if one of its processes has ended; the reason is in the log."""
_INTERRUPTED_WAIT = "cancelled"
"""All that vLLM says if the process that it waits for ends."""
_LOGGED_ERROR = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception): .+)$", re.MULTILINE)
_LOGGED_DEATH = re.compile(r"Worker proc \S+ died unexpectedly \(exit code: -?\d+\)")

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")
_NO_ROOM = ("to serve at least one request", "no available memory for the cache blocks", "free memory on device")
"""Texts of vLLM if an engine does not fit: the assumptions of `trd_engine.generation.vllm.residence` were too low."""
_DISK_FULL = ("no space left on device", "disk quota exceeded")


def run_attempt_folder(folder: Path, stop: Callable[[], bool]) -> int:
    """Run the engine on an attempt's folder and return the exit code."""
    out_dir = folder / "run"
    resume_from = folder / "resume"
    from trd_engine.config import load_config
    from trd_engine.runtime.errors import StopRequested
    from trd_engine.training.loop import distil

    try:
        config = load_config(folder / "spec.json")
        distil(config, out_dir, resume_from=resume_from if resume_from.is_dir() else None, stop=stop)
    except StopRequested:
        return STOPPED_EXIT_CODE
    except Exception as error:  # the boundary of the process: every failure is reported
        logger.exception("the run failed")
        try:
            report_failure(out_dir, error)
        except OSError as unwritten:
            if _exhausted_resource(unwritten) is None:
                raise
            return DISK_FULL_EXIT_CODE
        return FAILED_EXIT_CODE
    return FINISHED_EXIT_CODE


def report_failure(out_dir: Path, error: Exception) -> None:
    """Append the ``failed`` event.

    Under torchrun only one process reports: not one that failed because another process ended, and only the first if
    all fail for the same reason.
    """
    if _has_lost_another(error) or not _is_first_to_fail(out_dir.parent):
        return
    from trd_engine.runtime.errors import PassesTooLargeError
    from trd_engine.runtime.events import Reporter

    code = failure_code(error)
    details = "".join(traceback.format_exception(error)) if code == "internal_error" else None
    text = str(error).strip() or type(error).__name__
    message = f"{type(error).__name__}: {text}" if code == "internal_error" else text
    if code == "collective_timeout":
        message = f"rank {_rank()} waited for the other processes in phase {last_phase(out_dir)}: {message}"
    elif code == "gpu_fault" and _is_dead_engine(error):
        cause = _first_logged_error(out_dir.parent / "engine.log")
        message = f"a process of vLLM ended: {cause or message}"
        code = _exhausted_resource(RuntimeError(cause)) or code
    facts = {"pass_tokens": error.pass_tokens} if isinstance(error, PassesTooLargeError) else {}
    with Reporter(out_dir) as reporter:
        reporter.failed(code, message, details, **facts)


def _has_lost_another(error: Exception) -> bool:
    """Return whether the collective library lost another rank, which reports the reason itself."""
    is_collective = _is_under_torchrun() and _has_any(error, _COLLECTIVES)
    return is_collective and _has_any(error, _LOST_PEER) and not _has_any(error, _GPU_FAULTS)


def _has_any(error: BaseException, texts: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(part in text for part in texts)


def _is_dead_engine(error: BaseException) -> bool:
    return _has_any(error, _DEAD_ENGINE) or (isinstance(error, RuntimeError) and str(error) == _INTERRUPTED_WAIT)


def _first_logged_error(log: Path) -> str | None:
    """Return the first error in the engine's log: later ones only follow from it. Without one, say how it ended."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    consequences = (*_DEAD_ENGINE, f"error: {_INTERRUPTED_WAIT}")
    found = [line for line in _LOGGED_ERROR.findall(text) if not any(part in line.lower() for part in consequences)]
    found = found or _LOGGED_DEATH.findall(text)
    return found[0][:1000] if found else None


def _is_first_to_fail(folder: Path) -> bool:
    try:
        (folder / _FAILED_FILE).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def failure_code(error: BaseException) -> str:
    """Return the stable code of an exception, or of its first cause that has one."""
    from trd_engine.runtime.errors import EngineError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, EngineError):
            return seen.code
        if (resource := _exhausted_resource(seen)) is not None:
            return resource
        if _has_any(seen, _OLD_GPU):
            return "device_unavailable"
        if _has_any(seen, _HANG) and _has_any(seen, _COLLECTIVES):
            return "collective_timeout"
        if _has_any(seen, _GPU_FAULTS) or _is_dead_engine(seen):
            return "gpu_fault"
        seen = seen.__cause__ or seen.__context__
    return "internal_error"


def _exhausted_resource(error: BaseException) -> str | None:
    """Return the code for full memory or disk: libraries raise many types, and torch on a CPU a plain RuntimeError."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    is_memory = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _has_any(error, _OUT_OF_MEMORY))
    if is_memory or _has_any(error, _NO_ROOM):
        return "out_of_memory"
    return "disk_full" if _has_any(error, _DISK_FULL) else None


def _is_under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


class _LogFormatter(logging.Formatter):
    """Begins each line with the rank, as torch does, so that the worker's log can tell the ranks apart."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return textwrap.indent(text, f"[rank{_rank()}]: ", lambda _: True) if _is_under_torchrun() else text


def main(arguments: list[str]) -> int:
    """Run the process and return its exit code."""
    faulthandler.enable()  # a crash in native code leaves every thread's stack in the log
    folder = Path(arguments[0])
    code = run_attempt_folder(folder, StopRequest(folder))
    if not _is_under_torchrun():
        return code
    if _rank() == 0:
        (folder / EXIT_CODE_FILE).write_text(str(code), encoding="ascii")
    return FAILED_EXIT_CODE if code == FAILED_EXIT_CODE else FINISHED_EXIT_CODE


class Exit:
    """Ends the process with its code after all other exit hooks, without the interpreter's teardown.

    With torch and vLLM loaded the teardown takes up to ten seconds and saves nothing: all results are on the disk.
    """

    def __init__(self) -> None:
        self.code = FAILED_EXIT_CODE
        atexit.register(self._leave)  # hooks run in reverse order: register this one before any import of the engine

    def _leave(self) -> None:
        with suppress(OSError):  # their disk may be full
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self.code)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    process_exit = Exit()
    log_handler = logging.StreamHandler()
    log_handler.setFormatter(_LogFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[log_handler])
    logging.captureWarnings(True)
    process_exit.code = main(sys.argv[1:])
