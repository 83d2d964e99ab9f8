"""Read the output of a confined process, within its limits of time and size."""

from __future__ import annotations

import enum
import os
import selectors
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SCRATCH_CHECK_SECONDS = 0.05
_ENTRY_BYTES = 16 * 1024
"""Least size of a file or folder: `Limits.scratch_bytes` then allow as many as a scratch folder in memory has."""


@dataclass(frozen=True)
class WatchedScratch:
    """A scratch folder that no file system bounds, and the process that may write to it."""

    folder: Path
    process: int


class Pipe:
    """A pipe that keeps at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.reader, self.writer = os.pipe()
        self.data = bytearray()

    def text(self) -> str:
        """Return the data as text."""
        return self.data.decode("utf-8", "replace")


class Drained(enum.Enum):
    """The reason why reading ended."""

    ENDED = "ended"
    TIME_OUT = "time-out"
    TOO_MUCH_OUTPUT = "too much output"
    TOO_MUCH_SCRATCH = "too much in the scratch folder"


def drain(pipes: list[Pipe], deadline: float, watched: WatchedScratch | None, max_bytes: int) -> Drained:
    """Read until every writer is gone or a limit is reached, then close the readers.

    What is `watched` may hold `max_bytes`.
    """
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe.reader, selectors.EVENT_READ, pipe)
        ended = _read_all(selector, deadline, watched, max_bytes)
    for pipe in pipes:
        os.close(pipe.reader)
    return ended


def _read_all(
    selector: selectors.BaseSelector, deadline: float, watched: WatchedScratch | None, max_bytes: int
) -> Drained:
    while selector.get_map():
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return Drained.TIME_OUT
        for key, _ in selector.select(min(remaining, _SCRATCH_CHECK_SECONDS) if watched else remaining):
            pipe: Pipe = key.data
            part = os.read(pipe.reader, 65536)
            pipe.data += part
            if len(pipe.data) > pipe.max_bytes:
                return Drained.TOO_MUCH_OUTPUT
            if not part:
                selector.unregister(pipe.reader)
        if watched is not None and scratch_bytes(watched) > max_bytes:
            return Drained.TOO_MUCH_SCRATCH
    return Drained.ENDED


def scratch_bytes(watched: WatchedScratch) -> int:
    """Return the size of what a process keeps in its scratch folder, and of files there that it holds but unlinked."""
    return _bytes_in(watched.folder) + sum(_unlinked_bytes(watched).values())


def _bytes_in(folder: Path) -> int:
    """Return bytes of the entries of a folder that is being changed while we look."""
    total, folders = 0, [str(folder)]
    while folders:  # no recursion: programs nest deeper than it goes
        with suppress(OSError), os.scandir(folders.pop()) as entries:  # removed meanwhile
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                with suppress(OSError):
                    total += _size(entry.stat(follow_symlinks=False))
    return total


def _size(status: os.stat_result) -> int:
    return max(status.st_size, status.st_blocks * 512, _ENTRY_BYTES)


def _unlinked_bytes(watched: WatchedScratch) -> dict[int, int]:
    """Return the bytes of each unlinked file that the process has open or mapped, by inode."""
    found: dict[int, int] = {}
    with suppress(OSError):
        device = watched.folder.stat().st_dev
        for descriptor in Path(f"/proc/{watched.process}/fd").iterdir():
            with suppress(OSError):
                status = descriptor.stat()
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_dev == device:
                    found[status.st_ino] = _size(status)
    with suppress(OSError):
        for line in Path(f"/proc/{watched.process}/maps").read_text("utf-8", "replace").splitlines():
            addresses, _, _, _, inode, *path = line.split(maxsplit=5)
            if path and path[0].endswith("(deleted)") and path[0].startswith(f"{watched.folder}/"):
                start, end = (int(address, 16) for address in addresses.split("-"))
                found[int(inode)] = max(found.get(int(inode), _ENTRY_BYTES), end - start)
    return found
