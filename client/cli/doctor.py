"""``trd doctor``: find out whether this machine can train."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from client.cli.processes import python_command
from client.errors import TrdError


def doctor(
    spec: Annotated[Path | None, typer.Argument(help="Also check what this engine spec (JSON) needs.")] = None,
    out: Annotated[
        Path, typer.Option("--out", envvar="TRD_DATA_DIR", help="Folder in which runs are written.")
    ] = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="Only what takes no more than a second.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON per finding.")] = False,
) -> None:
    """Check devices, limits, loss, sampler and sync on this machine, and say what to do about each failure."""
    if importlib.util.find_spec("torch") is None:
        raise TrdError(
            "the engine is not installed here", hint="pip install 'trd-service[cpu]', or [gpu] on a machine with GPUs"
        )
    flags = [*(["--quick"] if quick else []), *(["--json"] if as_json else [])]
    command = python_command("trd_engine", "doctor", *([str(spec)] if spec else []), "--out", str(out), *flags)
    raise typer.Exit(subprocess.run(command, check=False).returncode)
