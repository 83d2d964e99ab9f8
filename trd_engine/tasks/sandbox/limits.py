"""How much a program may use, and clearing its scratch folder between cases."""

from __future__ import annotations

import resource
import secrets
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of one case of a program: one input, or one test script."""

    cpu_seconds: int = 8
    wall_seconds: float = 10.0
    total_seconds: float = 60.0
    """Wall-clock seconds for all cases of a program together."""
    memory_bytes: int = 1024 * MIB
    """Address space; numpy alone takes some hundred MiB of it."""
    stack_bytes: int = 64 * MIB
    output_bytes: int = 8 * MIB
    total_output_bytes: int = 128 * MIB
    """Bytes for all cases of a program together, whose output is in the engine's memory before any is compared."""
    file_bytes: int = 16 * MIB
    scratch_bytes: int = 64 * MIB
    num_open_files: int = 64
    num_threads: int = 32


def apply_limits(limits: Limits) -> None:
    """Put this process under the limits, soft and hard alike, so that it cannot raise them again."""
    # SIGXCPU at the soft limit can be caught; the kernel kills at the hard one.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_STACK, limits.stack_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.num_open_files),
        (resource.RLIMIT_NPROC, limits.num_threads),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def empty_scratch(folder: Path) -> None:
    """Remove everything that a program left in `folder`, at any depth and with any modes.

    Level by level, each folder's content moves up before the folder goes: a walk down, as `shutil.rmtree` takes, holds
    a descriptor and a frame a level, and programs nest deeper than that. Raises OSError.
    """
    unguessed, count = secrets.token_hex(8), 0
    while entries := list(folder.iterdir()):
        for entry in entries:
            if not _is_opened_folder(entry):
                entry.unlink()
                continue
            for inner in entry.iterdir():
                count += 1
                _is_opened_folder(inner)  # a folder that may not be written to cannot move either
                inner.rename(folder / f"{unguessed}-{count}")
            entry.rmdir()


def _is_opened_folder(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    path.chmod(0o700)
    return True
