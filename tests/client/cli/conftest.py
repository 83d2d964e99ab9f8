"""The command line, run in this process against a real server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.cli.entry import main
from tests.client.conftest import RunningService
from tests.service.conftest import ADMIN_KEY


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture
def run(
    service: RunningService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Runs a command as ``trd`` would, in an empty folder, with an admin's key."""
    monkeypatch.setenv("TRD_URL", service.url)
    monkeypatch.setenv("TRD_API_KEY", ADMIN_KEY)
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str, stdin: str = "") -> Done:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run_command
