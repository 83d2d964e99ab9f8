"""Folders that only their user can read: they contain keys, data and models."""

from __future__ import annotations

from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Make the folder and its missing parents. An existing folder keeps its mode, which its operator chose."""
    if not path.parent.exists():
        make_private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
