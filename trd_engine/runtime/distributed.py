"""The processes of one run: the rank of each, and the values that they exchange.

Owns the process group, which exists only if ``torchrun`` started more than one process; a single process gets every
answer at once. Every method except `share`, `part_of`, `send` and `receive` is collective: all processes must call it
at the same place, or all of them wait.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trd_engine.runtime.errors import SpecError, StopRequested

T = TypeVar("T")

_WAIT_TIMEOUT = datetime.timedelta(days=7)
"""Of the methods of `World`, in which processes wait for one another: one may sample or verify for hours. If a process
dies, torchrun notices it and ends the others."""

_PASS_TIMEOUT = datetime.timedelta(minutes=30)
"""Limit of the collectives within a pass over a sharded model: all processes are at the same layer, or one hangs."""

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class World:
    """This process among `size`, numbered from 0."""

    rank: int = 0
    size: int = 1
    num_machines: int = 1
    _waiting: dist.ProcessGroup | None = field(default=None, repr=False)
    """The group for the exchanges that may take long; None for a single process."""

    @property
    def is_main(self) -> bool:
        """True in the one process that writes events, exports and manifests."""
        return self.rank == 0

    def share(self, count: int) -> list[int]:
        """Return this process's part of ``range(count)``: every `size`-th, so that similar lengths spread evenly."""
        return list(range(self.rank, count, self.size))

    def part_of(self, total: int) -> int:
        """Return this process's part of an amount that all of them share; may be 0 if `total` is less than `size`."""
        return (total + self.size - 1 - self.rank) // self.size

    def gather(self, mine: Sequence[T]) -> list[T]:
        """Return the items of all processes in the order that `share` has distributed."""
        if self.size == 1:
            return list(mine)
        parts: list[list[T]] = [[]] * self.size
        dist.all_gather_object(parts, list(mine), group=self._waiting)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def concatenate(self, mine_N: Tensor) -> Tensor:
        """Return the one-dimensional tensors of all processes end to end, on the device of `mine_N`."""
        if self.size == 1:
            return mine_N
        sizes = self.gather([mine_N.numel()])
        padded = mine_N.new_zeros(max(*sizes, 1))
        padded[: mine_N.numel()] = mine_N
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:n] for part, n in zip(gathered, sizes, strict=True)])

    def sum(self, value: float) -> float:
        """Return the sum over all processes, in double precision."""
        return value if self.size == 1 else self._all_reduced(value, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        """Return the largest value of all processes."""
        return value if self.size == 1 else self._all_reduced(value, dist.ReduceOp.MAX)

    def any(self, flag: bool) -> bool:
        """Return True in all processes if `flag` is true in at least one."""
        return flag if self.size == 1 else self.max(float(flag)) > 0

    def send(self, content: bytes, target: int) -> None:
        """Send bytes, at least one, to the process `target`, which calls `receive`."""
        size = torch.tensor([len(content)], dtype=torch.int64)
        dist.send(size, target, group=self._waiting)
        dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), target, group=self._waiting)

    def receive(self, source: int) -> bytes:
        """Return the bytes that the process `source` sends."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, source, group=self._waiting)
        content = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(content, source, group=self._waiting)
        return content.numpy().tobytes()

    def wait(self) -> None:
        """Block until all processes have called this."""
        self.any(False)

    def _all_reduced(self, value: float, operation: dist.ReduceOp.RedOpType) -> float:
        tensor = torch.tensor(value, dtype=torch.float64)  # on the CPU: no GPU waits for a count
        dist.all_reduce(tensor, operation, group=self._waiting)
        return float(tensor)


ALONE = World()


@contextmanager
def open_world(num_devices: int) -> Iterator[World]:
    """Yield the world of ``torchrun``'s processes, or of this one alone; the process group ends with the block.

    Raises `SpecError` unless there is one process for each device of the spec.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size != num_devices:
        raise SpecError(
            f"devices = {num_devices}, but the run has {size} process{'es' if size > 1 else ''}: start it by "
            f"torchrun --nproc-per-node {num_devices}, or set devices to {size}"
        )
    if size == 1:
        yield ALONE
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_launcher()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PASS_TIMEOUT)
    try:
        waiting = dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
        yield World(dist.get_rank(), size, int(os.environ.get("GROUP_WORLD_SIZE", "1")), waiting)
    except StopRequested:  # in all processes at once
        dist.destroy_process_group()
        raise
    # After any other error the group is left until the process ends: destroying it may wait for the other processes,
    # which wait for this one.
    dist.destroy_process_group()


def _die_with_launcher() -> None:
    """Let the kernel kill this process if torchrun dies, which ends no process if it is killed by signal 9.

    If torchrun has died before this call, the process fails soon: torchrun keeps the store at which processes meet.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
