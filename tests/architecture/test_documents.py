"""The architecture names files that exist, the index lists every page, and the README stays on one screen."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
VENDORED = CHECKOUT / "service" / "dashboard" / "static" / "vendor"
# A file of ours in backticks, as in `trd_engine/training/loop.py`; rooms of the engine are named without its folder.
_NAMED = re.compile(r"`([a-z_]+/[a-z_/]+(?:\.py|/))`")


def test_the_architecture_names_files_that_exist() -> None:
    named = _NAMED.findall((CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    roots = (CHECKOUT, CHECKOUT / "trd_engine")
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


def test_the_index_lists_every_document() -> None:
    index = (CHECKOUT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [path.name for path in (CHECKOUT / "docs").glob("*.md") if path.name != "README.md"]
    assert [name for name in pages if f"]({name})" not in index] == []


def test_the_readme_fits_on_a_screen() -> None:
    assert len((CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_vendored_files_are_those_of_the_manifest() -> None:
    packages = json.loads((VENDORED / "manifest.json").read_text(encoding="utf-8"))
    listed = {name: file["sha256"] for package in packages for name, file in package["files"].items()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDORED.iterdir()}
    del found["manifest.json"]
    assert found == listed
