"""``python -m trd_engine sample-server MODEL …``: become a vLLM server of a sampler pool.

It serves the model under the fingerprint of its weights, and takes adapters by `AdapterUploads`. All further arguments
are those of vLLM's OpenAI-compatible server, such as ``--port``, ``--max-lora-rank`` and ``--max-model-len``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from trd_engine.generation.served.adapters import NUM_KEPT, AdapterUploads
from trd_engine.models.folders import local_folder, weights_fingerprint
from trd_engine.runtime.errors import SpecError
from trd_engine.runtime.hardware import choose_device

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DEFAULT_RANK = 64
_MAX_LORAS = 4
"""Adapters in one batch: runs that share a server do not wait for each other."""


def become_server(model: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the server. Raises `SpecError` and `ModelNotFoundError`."""
    # FlashInfer's sampler is compiled at its first use, for which slim images lack nvcc; seeded requests never use it.
    environment = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    os.execve(sys.executable, server_command(model, arguments), os.environ | environment)


def server_command(model: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line; `arguments` are vLLM's, and replace the defaults here."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    for fixed in ("--api-key", "--middleware", "--served-model-name", "--api-server-count"):
        parser.add_argument(fixed)
    given, _ = parser.parse_known_args(arguments)
    for name, value in vars(given).items():
        if name != "host" and value is not None:
            raise SpecError(
                f"--{name.replace('_', '-')}: a sample server sets it itself; leave it out (the key is VLLM_API_KEY)"
            )
    if given.host not in _LOOPBACK and not os.environ.get("VLLM_API_KEY"):
        raise SpecError(f"--host {given.host}: others could use the server; set VLLM_API_KEY to a key of your choice")
    folder = local_folder(model)
    on_cpu = choose_device("auto").type == "cpu"
    uploads = f"{AdapterUploads.__module__}.{AdapterUploads.__qualname__}"
    return [
        sys.executable,
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", folder, "--served-model-name", weights_fingerprint(Path(folder))),
        *("--enable-lora", "--max-lora-rank", str(_DEFAULT_RANK)),
        *("--max-loras", str(_MAX_LORAS), "--max-cpu-loras", str(NUM_KEPT)),
        "--generation-config=vllm",  # the folder's own sampling defaults must not mix with the request's
        "--logprobs-mode=raw_logprobs",  # before temperature, top-k and top-p
        "--disable-uvicorn-access-log",
        *("--middleware", uploads),
        *("--host", "127.0.0.1"),
        # A prompt read in parts makes vLLM rewind its request's generator, which torch's CPU generators cannot do.
        *(["--enforce-eager", "--no-enable-chunked-prefill"] if on_cpu else []),
        *arguments,
    ]
