"""Landlock: which files a process may open, enforced by the kernel without any privilege."""

from __future__ import annotations

import os
from collections.abc import Iterable

from trd_engine.tasks.sandbox import kernel

_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_REMOVE_DIR = 1 << 4
_REMOVE_FILE = 1 << 5
_MAKE_DIR = 1 << 7
_MAKE_REGULAR = 1 << 8
_REFER = 1 << 13
_TRUNCATE = 1 << 14

_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many kinds of access each version of the interface knows; later ones are forbidden nothing more."""
TRUNCATION_VERSION = 3
"""The first one that can forbid to truncate a file by its path."""

_SCRATCH = (
    _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REGULAR | _REFER | _TRUNCATE
)


def restrict_files(readable: Iterable[str], scratch: str | None, devices: Iterable[str]) -> None:
    """Allow reading beneath `readable`, everything but links and devices beneath `scratch`, nothing elsewhere."""
    version = kernel.landlock_version()
    handled = (1 << _RIGHTS_BY_VERSION.get(version, 16)) - 1
    ruleset = kernel.landlock_ruleset(handled)
    for path in readable:
        _allow(ruleset, path, (_READ_FILE | _READ_DIR) if os.path.isdir(path) else _READ_FILE)  # noqa: PTH112
    for path in devices:
        _allow(ruleset, path, _READ_FILE | _WRITE_FILE)
    if scratch is not None:
        _allow(ruleset, scratch, _SCRATCH & handled)
    kernel.landlock_restrict(ruleset)
    os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        kernel.landlock_allow(ruleset, descriptor, access)
    finally:
        os.close(descriptor)
