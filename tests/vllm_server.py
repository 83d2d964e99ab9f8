"""vLLM's own OpenAI-compatible server on a CPU, for tests of served teachers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.servers import die_with_parent, free_port

START_SECONDS = 240


@contextmanager
def serving_model(folder: Path, *, name: str, api_key: str, max_model_len: int) -> Iterator[str]:
    """The base URL of a server of the model in `folder`, in fp32; stopped at the end."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(folder), "--served-model-name", name, "--api-key", api_key]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(max_model_len)]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdout=log, stderr=log, preexec_fn=die_with_parent
        )
        try:
            if not _is_up(server, port):
                log.seek(0)
                pytest.fail(f"vLLM's server did not start:\n{log.read()[-3000:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(timeout=60)


def _is_up(server: subprocess.Popen[bytes], port: int) -> bool:
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at and server.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                return True
        except httpx.TransportError:
            time.sleep(1)
    return False
