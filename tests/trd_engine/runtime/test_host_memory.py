"""Freed memory stays with the process, seen in a separate process by what the kernel counts."""

from __future__ import annotations

import subprocess
import sys

import torch

from trd_engine.runtime.hardware import keep_freed_memory

SCRIPT = """
import resource, sys, torch
from trd_engine.runtime.hardware import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**26 // 4)  # 64 MiB: 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
assert keep_freed_memory(torch.device("cpu"))
for _ in range(5):
    faults()  # until the heap has found places for such blocks
print(first, faults())
"""


def test_freed_memory_is_reused() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10


def test_an_accelerators_process_is_left_alone() -> None:
    assert not keep_freed_memory(torch.device("cuda"))
