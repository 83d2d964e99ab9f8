"""Namespaces: a process tree with no network, no other processes, and a file system it cannot write to."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from trd_engine.tasks.sandbox import kernel

SCRATCH = "/scratch"
_NOBODY = 65534
_UNUSED_USERS = range(2_000_000_000, 2**31 - 1)
"""Numbers that no account has; each sandbox takes its own, so that the limit on processes is its own too."""

_NEW = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS


def enter_namespaces(*, as_user: bool) -> None:
    """Leave the machine's namespaces; children are in a new process namespace.

    `as_user` makes a user namespace first, in which an unprivileged process may do the rest; without it
    the process must be root. Raises OSError if the kernel does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    kernel.unshare(_NEW | (kernel.CLONE_NEWUSER if as_user else 0))
    if as_user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1")


def change_root(root: str, readable: Iterable[str], devices: Iterable[str], scratch_bytes: int) -> None:
    """Make a new root on the empty folder `root`: `readable` and `devices` at their places, read-only, and
    `SCRATCH` in memory, the only place that can be written to."""
    kernel.mount("none", "/", None, kernel.MS_PRIVATE | kernel.MS_REC)
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0755")
    Path(root + SCRATCH).mkdir()
    for path in readable:
        _bind(path, root + path)
    for path in devices:
        _bind(path, root + path)
    kernel.set_mount_attributes(root, kernel.MS_RDONLY | kernel.MS_NOSUID)
    options = f"size={scratch_bytes},nr_inodes=4096,mode=1777"
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", root + SCRATCH, "tmpfs", flags, options)
    os.chdir(root)
    kernel.pivot_root(".", ".")  # the old root now lies on top of the new one, and goes
    kernel.detach(".")
    os.chdir("/")


def become_nobody() -> None:
    """Take a user number that owns nothing; needs root."""
    # Drawn: our process number is 1 here, and elsewhere that of other containers' sandboxes too.
    unused = secrets.choice(_UNUSED_USERS)
    os.setgroups([])
    os.setresgid(unused, unused, unused)
    os.setresuid(unused, unused, unused)


def _bind(source: str, target: str) -> None:
    if Path(source).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
