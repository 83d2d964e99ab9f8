"""The layers around a program, put on in the order in which the kernel allows it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trd_engine.tasks.sandbox import kernel, landlock, namespaces, seccomp
from trd_engine.tasks.sandbox.limits import Limits, apply_limits

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_RUNTIME_LIBRARIES = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/usr/share/zoneinfo",
)


@dataclass(frozen=True)
class Confinement:
    """Which layers a machine allows; system call filter and resource limits are never left out."""

    namespaces: Literal["root", "user", "none"]
    """Made by root, made within a user namespace, or not at all."""
    landlock: bool


def candidates() -> list[Confinement]:
    """Return the layers that may work on this machine, strongest first; `runner.find_confinement` tries them."""
    if not sys.platform.startswith("linux") or not seccomp.is_supported():
        return []
    version = kernel.landlock_version()
    ways: list[Literal["root", "user"]] = ["root", "user"] if os.geteuid() == 0 else ["user"]
    found = [Confinement(way, version > 0) for way in ways]
    # Without a separate root, a program that cannot open a file might still truncate it by its path.
    return [*found, Confinement("none", True)] if version >= landlock.TRUNCATION_VERSION else found


def readable_paths() -> list[str]:
    """Return the paths of Python and its libraries: the only files of this machine that a program sees."""
    wanted = [sys.base_prefix, sys.prefix, *_RUNTIME_LIBRARIES]
    there = sorted({path for path in wanted if Path(path).exists()}, key=len)
    return [path for path in there if not any(path.startswith(above.rstrip("/") + "/") for above in there)]


def enter_confinement(confinement: Confinement, root: str, limits: Limits) -> str:
    """Enter the namespaces, become nobody, and return the scratch folder's new path.

    What continues is a fork: the first process of its namespace, with which the kernel kills all others. The process
    that called waits for it, and ends as it ends.
    """
    scratch = _leave_machine(confinement, root, limits)
    warden = os.fork()
    if warden:
        _, status = os.waitpid(warden, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.die_with_parent()
    _give_up_privileges(confinement)
    kernel.die_with_parent()  # changing the user forgets it
    return scratch


def _leave_machine(confinement: Confinement, root: str, limits: Limits) -> str:
    """Enter the namespaces, before the fork; return the scratch folder's new path."""
    if confinement.namespaces == "none":
        return root
    enter_as_user = confinement.namespaces == "user"
    namespaces.enter_namespaces(as_user=enter_as_user)
    namespaces.change_root(root, readable_paths(), DEVICES, limits.scratch_bytes)
    return namespaces.SCRATCH


def _give_up_privileges(confinement: Confinement) -> None:
    """Give up all privileges for good; called after the fork into the new process namespace."""
    kernel.forbid_new_privileges()
    if confinement.namespaces == "root":
        namespaces.become_nobody()
    kernel.drop_capabilities()
    kernel.hide_from_tracers()


def counts_threads(confinement: Confinement) -> bool:
    """Return whether the limit on threads will hold for the program; asked before `enter_confinement`.

    The kernel does not count what the machine's root starts, whatever it is called in a user namespace.
    """
    return confinement.namespaces == "root" or os.getuid() != 0


def confine_program(confinement: Confinement, scratch: str, limits: Limits, *, allow_threads: bool) -> None:
    """Add the last layers, in the program's own process, right before its first line runs."""
    apply_limits(limits)
    os.chdir(scratch)
    if confinement.namespaces == "none":
        kernel.show_to_parent()  # which counts the files that it holds
    if confinement.landlock:
        landlock.restrict_files(readable_paths(), scratch, DEVICES)
    seccomp.restrict_system_calls(allow_threads=allow_threads)
