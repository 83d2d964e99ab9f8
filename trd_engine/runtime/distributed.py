"""The processes of one run: who each is, and what they tell one another.

Owns the process group, which exists only where ``torchrun`` started more than one process; alone, every call
answers at once. What is exchanged is tensors, JSON and safetensors, never a pickle. Every method but `share` and
`part_of` is collective: all processes call it at the same place, or all of them wait.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trd_engine.runtime.errors import SpecError, StopRequested

T = TypeVar("T")

_WAIT_TIMEOUT = datetime.timedelta(days=7)
"""Of `World`'s exchanges, at which the processes wait for one another: one may sample or verify for hours. A process
that dies is noticed by torchrun, which ends the others."""

_PASS_TIMEOUT = datetime.timedelta(minutes=30)
"""Of the exchanges within a pass over a divided model: all are at the same layer, or one of them hangs."""

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class World:
    """This process among `size`, numbered from 0."""

    rank: int = 0
    size: int = 1
    _waiting: dist.ProcessGroup | None = field(default=None, repr=False)
    """The group in which the processes wait for one another; None alone."""

    @property
    def is_main(self) -> bool:
        """True in the one process that writes events, exports and manifests."""
        return self.rank == 0

    def share(self, count: int) -> list[int]:
        """This process's part of ``range(count)``: every `size`-th, so that neighbours in length part evenly."""
        return list(range(self.rank, count, self.size))

    def part_of(self, total: int) -> int:
        """This process's part of a number that all of them use up together; none where `total` is less than `size`."""
        return (total + self.size - 1 - self.rank) // self.size

    def gather(self, mine: Sequence[T], dump: Callable[[list[T]], bytes], load: Callable[[bytes], list[T]]) -> list[T]:
        """What all processes have, put together as `share` took it apart; it travels as `dump` writes it."""
        if self.size == 1:
            return list(mine)
        parts = [load(data) for data in self._gather_bytes(dump(list(mine)))]
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def gather_documents(self, mine: Sequence[Any]) -> list[Any]:
        """`gather` of JSON documents."""
        return self.gather(mine, lambda documents: json.dumps(documents).encode(), json.loads)

    def concatenate(self, mine_N: Tensor) -> Tensor:
        """The one-dimensional tensors of all processes end to end, on the device of `mine_N`."""
        if self.size == 1:
            return mine_N
        sizes = [int(n) for n in self._all_reduced(self._own_slot(mine_N.numel()), dist.ReduceOp.SUM)]
        padded = mine_N.new_zeros(max(*sizes, 1))
        padded[: mine_N.numel()] = mine_N
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:n] for part, n in zip(gathered, sizes, strict=True)])

    def sum(self, value: float) -> float:
        """The sum over all processes, in double precision."""
        return value if self.size == 1 else self._all_reduced([value], dist.ReduceOp.SUM)[0]

    def max(self, value: float) -> float:
        """The largest of all processes' values."""
        return value if self.size == 1 else self._all_reduced([value], dist.ReduceOp.MAX)[0]

    def any(self, flag: bool) -> bool:
        """True in all processes where it is in one."""
        return flag if self.size == 1 else self.max(float(flag)) > 0

    def wait(self) -> None:
        """Until all processes have come here."""
        self.any(False)

    def _own_slot(self, value: float) -> list[float]:
        return [value if rank == self.rank else 0.0 for rank in range(self.size)]

    def _all_reduced(self, values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)  # on the CPU: no GPU waits for a count
        dist.all_reduce(tensor, operation, group=self._waiting)
        return [float(value) for value in tensor]

    def _gather_bytes(self, mine: bytes) -> list[bytes]:
        no_bytes = torch.empty(0, dtype=torch.uint8)  # `frombuffer` takes no empty buffer
        data_N = torch.frombuffer(bytearray(mine), dtype=torch.uint8) if mine else no_bytes
        sizes = [int(n) for n in self._all_reduced(self._own_slot(len(mine)), dist.ReduceOp.SUM)]
        whole = self.concatenate(data_N)
        return [bytes(part.numpy()) for part in whole.split(sizes)]


ALONE = World()


@contextmanager
def open_world(num_devices: int) -> Iterator[World]:
    """The world that ``torchrun`` made, or this process alone; its process group ends with the block.

    Raises `SpecError` unless there is one process for each of the spec's devices.
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
        yield World(dist.get_rank(), size, dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT))
    except StopRequested:  # in all processes at once
        dist.destroy_process_group()
        raise
    # After any other error the group is left to the process's end: to take it down may wait for the others, which
    # wait for this one.
    dist.destroy_process_group()


def _die_with_launcher() -> None:
    """Have the kernel kill this process when torchrun goes: killed with signal 9, that ends nobody.

    One that has gone before is missed soon enough: it keeps the store at which the processes meet.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
