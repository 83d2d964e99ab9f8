"""The scratch folder after a case."""

from __future__ import annotations

import secrets
from pathlib import Path


def empty_scratch(folder: Path) -> None:
    """Remove all that a program left in `folder`, however deep, and whatever modes it gave its folders.

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
