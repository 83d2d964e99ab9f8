"""Read the output of a confined process, within its limits of time and size."""

from __future__ import annotations

import enum
import os
import selectors
import time
from contextlib import suppress
from pathlib import Path

_SCRATCH_CHECK_SECONDS = 0.05


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


def drain(pipes: list[Pipe], deadline: float, watched: Path | None, max_bytes: int) -> Drained:
    """Read until every writer is gone or a limit is reached, then close the readers.

    `watched` is a scratch folder that no file system bounds; it may hold `max_bytes`.
    """
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe.reader, selectors.EVENT_READ, pipe)
        ended = _read_all(selector, deadline, watched, max_bytes)
    for pipe in pipes:
        os.close(pipe.reader)
    return ended


def _read_all(selector: selectors.BaseSelector, deadline: float, watched: Path | None, max_bytes: int) -> Drained:
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
        if watched is not None and _num_bytes(watched) > max_bytes:
            return Drained.TOO_MUCH_SCRATCH
    return Drained.ENDED


def _num_bytes(folder: Path) -> int:
    """Return bytes of the files in a folder that is being changed while we look."""
    total, folders = 0, [str(folder)]
    while folders:  # no recursion: programs nest deeper than it goes
        with suppress(OSError), os.scandir(folders.pop()) as entries:  # removed meanwhile
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_size
    return total
