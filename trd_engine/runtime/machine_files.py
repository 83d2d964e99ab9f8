"""Files of a run whose processes are on several machines, each with its own disk.

They travel by the process group, to and from the main process's disk: a run needs no file system that all machines
see. On one machine, or with a shared file system, nothing is copied. Every function is collective.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from trd_engine.runtime.distributed import World

CHUNK_BYTES = 2**26
"""Part of a file that is in memory at a time."""


def disk_owners(folder: Path, world: World) -> list[int]:
    """Return one process for each disk that has its own `folder`, the main process first.

    The main process writes a file there; a machine whose processes do not see it has another disk.
    """
    if world.num_machines == 1:
        return [0]
    name = f".seen-{secrets.token_hex(8)}"
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    mark = folder / world.gather([name])[0]
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    owners = world.gather([world.is_main or (is_first and not mark.exists())])
    if world.is_main:
        mark.unlink()
    return [rank for rank, is_owner in enumerate(owners) if is_owner]


def collect_files(folder: Path, owners: Sequence[int], world: World) -> None:
    """Copy what is below `folder` on the disks of `owners` to the main process's disk."""
    for owner in owners[1:]:
        if world.rank == owner:
            _send(folder, [0], world)
        elif world.is_main:
            _receive(folder, owner, world)


def share_folder(folder: Path, world: World) -> None:
    """Replace `folder` on every other machine's disk with the main process's, and wait for all."""
    others = disk_owners(folder, world)[1:]
    if world.is_main:
        _send(folder, others, world)
    elif world.rank in others:
        shutil.rmtree(folder, ignore_errors=True)
        _receive(folder, 0, world)
    world.wait()


def _send(folder: Path, targets: Sequence[int], world: World) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files] if targets else []
    for target in targets:
        world.send(json.dumps(listing).encode(), target)
    for name, _ in listing:
        with (folder / name).open("rb") as file:
            while content := file.read(CHUNK_BYTES):
                for target in targets:
                    world.send(content, target)


def _receive(folder: Path, source: int, world: World) -> None:
    for name, num_bytes in json.loads(world.receive(source)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while file.tell() < num_bytes:
                file.write(world.receive(source))
