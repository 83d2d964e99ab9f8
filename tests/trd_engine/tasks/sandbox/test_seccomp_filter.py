"""The system call filter of both architectures, run by a small BPF interpreter: this machine is only one."""

from __future__ import annotations

import errno
import struct

import pytest

from trd_engine.tasks.sandbox.seccomp import Instruction, build_filter
from trd_engine.tasks.sandbox.syscall_numbers import ALLOWED, CHECKED

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OWN = 4321


def decide(program: list[Instruction], architecture: int, number: int, *arguments: int) -> int:
    """Return the kernel's decision about one call under the filter."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    accumulator = place = 0
    while True:
        code, if_true, if_false, k = program[place]
        if code == 0x06:
            return k
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
            place += 1
            continue
        holds = accumulator == k if code == 0x15 else bool(accumulator & k)
        assert code in (0x15, 0x45)
        place += 1 + (if_true if holds else if_false)


def filtered(machine: str, name: str, *arguments: int, allow_threads: bool = True) -> int:
    numbers = {**ALLOWED, **CHECKED, "clone3": (435, 435)}[name]
    number = numbers[0] if machine == "x86_64" else numbers[1]
    assert number is not None
    program = build_filter(machine, OWN, allow_threads=allow_threads)
    return decide(program, ARCHITECTURES[machine], number, *arguments)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_only_listed_calls_pass(machine: str) -> None:
    column = 0 if machine == "x86_64" else 1
    program = build_filter(machine, OWN, allow_threads=True)
    allowed = {numbers[column] for numbers in ALLOWED.values()} - {None}
    checked = {numbers[column] for numbers in CHECKED.values()} | {435}
    for number in set(range(600)) - checked:
        expected = ALLOW if number in allowed else REFUSE
        assert decide(program, ARCHITECTURES[machine], number) == expected


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_another_architecture_is_killed(machine: str) -> None:
    program = build_filter(machine, OWN, allow_threads=True)
    assert decide(program, 0x40000003, 1) == KILL  # 32-bit x86


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_calls_that_hang_on_their_arguments(machine: str) -> None:
    assert filtered(machine, "clone", 0x3D0F00) == ALLOW  # what pthread_create asks for
    assert filtered(machine, "clone", 0x3D0F00, allow_threads=False) == REFUSE
    assert filtered(machine, "clone", 17) == REFUSE  # what fork asks for
    assert filtered(machine, "clone3") == UNKNOWN
    assert filtered(machine, "tgkill", OWN, OWN, 6) == ALLOW
    assert filtered(machine, "tgkill", OWN - 1, OWN - 1, 6) == REFUSE
    assert filtered(machine, "prlimit64", 0, 7) == ALLOW
    assert filtered(machine, "prlimit64", 1, 7) == REFUSE
    assert filtered(machine, "ioctl", 0, 0x5401) == ALLOW
    assert filtered(machine, "ioctl", 0, 0x5412) == REFUSE  # TIOCSTI types into a terminal
    assert filtered(machine, "fcntl", 3, 2) == ALLOW
    assert filtered(machine, "fcntl", 3, 8) == REFUSE  # F_SETOWN
    assert filtered(machine, "fcntl", 3, 1030) == ALLOW
