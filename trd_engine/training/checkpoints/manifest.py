"""A folder's manifest: its files, their sizes and sha256. Written last, it makes a checkpoint valid."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trd_engine.models.folders import MANIFEST_FILE
from trd_engine.runtime.errors import CheckpointCorruptError

_HASHING_THREADS = 8


def write_manifest(folder: Path, **facts: Any) -> dict[str, Any]:
    """List every file below `folder`, flushed to the disk, beside `facts`; returns the manifest."""

    def entry(path: Path) -> dict[str, Any]:
        fsync(path)
        name = path.relative_to(folder).as_posix()
        return {"name": name, "num_bytes": path.stat().st_size, "sha256": sha256_of(path)}

    with ThreadPoolExecutor(_HASHING_THREADS) as threads:  # large checkpoints take minutes of hashing
        files = list(threads.map(entry, sorted(p for p in folder.rglob("*") if p.is_file())))
    manifest = {**facts, "files": files}
    target = folder / MANIFEST_FILE
    target.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    fsync(target)
    return manifest


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Return the folder's manifest; raise `CheckpointCorruptError` naming the first file that differs from it."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointCorruptError(f"{folder.name}: no readable {MANIFEST_FILE}: {error}") from error

    def fault(entry: dict[str, Any]) -> str | None:
        path = folder / entry["name"]
        if not path.is_file():
            return "is missing"
        is_same = path.stat().st_size == entry["num_bytes"] and sha256_of(path) == entry["sha256"]
        return None if is_same else "is not what the manifest says"

    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        for entry, found in zip(manifest["files"], threads.map(fault, manifest["files"]), strict=True):
            if found is not None:
                raise CheckpointCorruptError(f"{folder.name}: {entry['name']} {found}")
    return manifest


def has_all_files(folder: Path) -> bool:
    """Return whether every file that the manifest lists is there with its size. This is quick, and reads no content."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        return all((folder / entry["name"]).stat().st_size == entry["num_bytes"] for entry in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
