"""Generate the sync client: ``python client/generate.py`` writes ``client/_sync`` from ``client/_async``.

`unasync` removes ``async`` and ``await`` and renames; here ``AsyncX`` becomes ``X`` and ``async_x`` becomes ``x``.
What differs beyond names is in `client.concurrency`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync  # type: ignore[import-untyped]

SOURCE = Path(__file__).with_name("_async")
TARGET = Path(__file__).with_name("_sync")

_HEADER = "# Generated from client/_async/{name} by `python client/generate.py`. Do not edit.\n\n"
_INIT = '"""The sync client, generated from `client._async`."""\n'
_NAMES = {
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_raw": "iter_raw",
    "aread": "read",
}


def generated_files() -> dict[str, str]:
    """Return the text of every file of `client._sync` by its name."""
    sources = sorted(path for path in SOURCE.glob("*.py") if path.name != "__init__.py")
    prefixed = {name for path in sources for name in re.findall(r"\b(?:Async|async_)\w+", path.read_text("utf-8"))}
    names = _NAMES | {name: re.sub("^(Async|async_)", "", name) for name in prefixed}
    with tempfile.TemporaryDirectory() as folder:
        unasync.unasync_files([str(path) for path in sources], [unasync.Rule(str(SOURCE), folder, names)])
        texts = {path.name: _formatted(path.name, (Path(folder) / path.name).read_text("utf-8")) for path in sources}
    return {"__init__.py": _INIT, **texts}


def _formatted(name: str, text: str) -> str:
    text = _HEADER.format(name=name) + text
    ours = 'lint.isort.known-first-party = ["client", "contract"]'  # also while client/_sync does not exist yet
    for command in (["check", "--fix-only", "--quiet", "--select", "I", "--config", ours], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(TARGET / name), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    for old in TARGET.glob("*.py"):
        old.unlink()
    for name, text in generated_files().items():
        (TARGET / name).write_text(text, encoding="utf-8")
