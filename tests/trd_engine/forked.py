"""Processes that are forked from a server which has imported the engine: the imports take longer than a small run."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.servers import free_port

VLLM = "vllm.v1.engine.llm_engine"


def fork(
    work: Callable[..., Any], *arguments: Any, log: Path, preload: str = "", **environment: str
) -> ForkServerProcess:
    """Start `work`, whose output is added to `log`; what it returns is its exit code.

    `preload`: one more module that the server imports if this is the first call in this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trd_engine.training.setup", *filter(None, [preload])])
    process = context.Process(target=_work, args=(work, arguments, log, environment))
    process.start()
    return process


def _work(work: Callable[..., Any], arguments: tuple[Any, ...], log: Path, environment: dict[str, str]) -> None:
    gc.freeze()  # no collection looks at what the server imported
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(work(*arguments))


def fork_ranks(
    work: Callable[..., Any], *arguments: Any, num_processes: int, log: Path, **environment: str
) -> list[int | None]:
    """Run `work` in the processes of one world, as torchrun starts them: a failure ends all; return the exit codes."""
    world = {**environment, "WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        fork(work, *arguments, log=log, **world, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(num_processes)
    ]
    give_up_at = time.monotonic() + 500
    while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks):
        if time.monotonic() > give_up_at:
            break
        ranks[0].join(0.05)
    for rank in ranks:
        rank.kill()
        rank.join()
    return [rank.exitcode for rank in ranks]
