"""Folders that nobody but their user looks into: they hold keys, data and models."""

from __future__ import annotations

from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Make the folder, and those above it that there are not. What is there already keeps its mode: it is its
    operator's, who may share it with a group."""
    if not path.parent.exists():
        make_private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
