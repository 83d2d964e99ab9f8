"""Sandboxes beside each other, as a pool of verifiers runs them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from trd_engine.tasks.sandbox.confinement import counts_threads
from trd_engine.tasks.sandbox.limits import Limits
from trd_engine.tasks.sandbox.runner import CaseResult, find_confinement, run_program

_HOLDS_THREADS = """
import os, threading, time

def hold(num_threads, until):
    assert time.time() < until, "started too late to be beside anything"
    threading.stack_size(65536)
    threads = [threading.Thread(target=lambda: time.sleep(max(0, until - time.time()))) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return os.getuid()
"""


def test_a_neighbours_threads_do_not_count() -> None:
    confinement = find_confinement()
    if not counts_threads(confinement):
        pytest.skip("no program may start a thread on this machine")
    until = time.time() + 5.0

    def hold(num_threads: int) -> CaseResult:
        case = {"entry_point": "hold", "arguments": [num_threads, until]}
        return run_program(_HOLDS_THREADS, [case], Limits(), confinement)[0]

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(hold, (30, 4)))
    assert [(result.status, result.error) for result in results] == [("ok", "")] * 2
    if confinement.namespaces == "root":
        assert len({json.loads(result.output) for result in results}) == 2
