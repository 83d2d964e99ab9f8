"""seccomp: the system calls that a Python program needs, and no others.

The list is of what is allowed; anything else, known or yet to be invented, fails with EPERM.
"""

from __future__ import annotations

import errno
import functools
import os

from trd_engine.tasks.sandbox import kernel
from trd_engine.tasks.sandbox.syscall_numbers import ALLOWED, CHECKED, NOT_THERE

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Classic BPF on struct seccomp_data: number at 0, architecture at 4, arguments (64 bits each) from 16.
_LOAD = 0x20
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_SET = 0x45
_RETURN = 0x06
_NUMBER, _ARCHITECTURE = 0, 4

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_REFUSE_AS_UNKNOWN = 0x00050000 | errno.ENOSYS
_KILL = 0x80000000

_CLONE_THREAD = 0x00010000
_HARMLESS_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451, 0x5413)
"""TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TIOCGWINSZ: what opening files and isatty() use."""
_HARMLESS_FCNTLS = (*range(8), 1030)
"""Duplicate, flags and locks. Left out: F_SETOWN and F_SETSIG, which send signals to other processes."""

Instruction = tuple[int, int, int, int]


def is_supported() -> bool:
    """Return whether this machine's system call numbers are known here."""
    return os.uname().machine in _AUDIT_ARCH


def restrict_system_calls(*, allow_threads: bool) -> None:
    """Put this process under the filter, for good. Needs `forbid_new_privileges` first."""
    kernel.set_seccomp_filter(build_filter(os.uname().machine, os.getpid(), allow_threads=allow_threads))


@functools.cache
def filter_without_signals() -> list[Instruction]:
    """Return the filter of a process without threads that may signal none, itself included: the same for all forks."""
    return build_filter(os.uname().machine, 0, allow_threads=False)


def build_filter(machine: str, process_id: int, *, allow_threads: bool) -> list[Instruction]:
    """Return the filter as BPF instructions; `process_id` is the only one that signals may go to."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),  # another architecture's numbers mean other calls
        (_LOAD, 0, 0, _NUMBER),
    ]
    program += _when(_number(NOT_THERE["clone3"], machine), [(_RETURN, 0, 0, _REFUSE_AS_UNKNOWN)])
    if allow_threads:
        # clone3's flags lie behind a pointer, which a filter cannot follow: glibc falls back to clone.
        program += _when(_number(CHECKED["clone"], machine), _if_set(0, _CLONE_THREAD))
    program += _when(_number(CHECKED["tgkill"], machine), _if_one_of(0, (process_id,)))
    program += _when(_number(CHECKED["prlimit64"], machine), _if_one_of(0, (0, process_id)))
    program += _when(_number(CHECKED["ioctl"], machine), _if_one_of(1, _HARMLESS_IOCTLS))
    program += _when(_number(CHECKED["fcntl"], machine), _if_one_of(1, _HARMLESS_FCNTLS))
    for numbers in ALLOWED.values():
        number = _number(numbers, machine)
        program += _when(number, [(_RETURN, 0, 0, _ALLOW)])
    return [*program, (_RETURN, 0, 0, _REFUSE)]


def _number(numbers: tuple[int | None, int | None], machine: str) -> int | None:
    return numbers[0] if machine == "x86_64" else numbers[1]


def _when(number: int | None, block: list[Instruction]) -> list[Instruction]:
    """Run `block`, which returns, if the call has this number; a call this machine lacks adds nothing."""
    return [] if number is None else [(_JUMP_IF_EQUAL, 0, len(block), number), *block]


def _if_set(argument: int, bits: int) -> list[Instruction]:
    return [
        (_LOAD, 0, 0, 16 + 8 * argument),
        (_JUMP_IF_SET, 0, 1, bits),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]


def _if_one_of(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    """Compare the lower half alone: the kernel reads these arguments as 32-bit integers."""
    compare = [(_JUMP_IF_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [(_LOAD, 0, 0, 16 + 8 * argument), *compare, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
