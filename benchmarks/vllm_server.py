"""vLLM's OpenAI-compatible server on a CPU: one thread, fp32, on the loopback.

``python -m benchmarks.vllm_server ARGUMENTS…`` becomes that server and gets SIGINT when its parent ends: SIGKILL would
leave its child process, which holds the model, running.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.servers import free_port

START_SECONDS = 240
STOP_SECONDS = 60
MAX_REQUESTS = 16
"""Concurrent sequences; equal to the engine's default number of requests."""
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""One unbound thread; 1 GiB for keys and values."""
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class ServerDidNotStartError(RuntimeError):
    """The server ended or did not answer in time; the message ends with its log."""


@contextmanager
def serving_model(folder: Path, *, name: str, max_model_len: int, api_key: str | None = None) -> Iterator[str]:
    """Serve the model in `folder` as `name`, and yield the base URL; the server is stopped at the end.

    `max_model_len`: maximum tokens of a prompt and its completion. Raises `ServerDidNotStartError`.
    """
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.vllm_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(folder), "--served-model-name", name, "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(max_model_len), "--max-num-seqs", str(MAX_REQUESTS)]
    command += ["--api-key", api_key] if api_key else []
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, env=os.environ | SETTINGS, stdout=log, stderr=log)
        try:
            if not is_up(server, port):
                log.seek(0)
                raise ServerDidNotStartError(f"vLLM's server did not start:\n{log.read()[-3000:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def is_up(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; return False if it ended or took too long."""
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at and server.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                return True
        except httpx.TransportError:
            time.sleep(1)
    return False


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[1:]])
