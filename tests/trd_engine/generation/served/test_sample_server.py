"""The command line of a sample server: what it sets, and what it leaves to the operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from trd_engine.cli import EXIT_FAILED, main
from trd_engine.generation.served.start import server_command
from trd_engine.models.folders import weights_fingerprint
from trd_engine.runtime.errors import SpecError


def test_the_operators_arguments_come_last(model_folder: Path) -> None:
    command = server_command(str(model_folder), ["--port", "8001", "--max-lora-rank", "16", "--host", "::1"])
    assert command[command.index("--served-model-name") + 1] == weights_fingerprint(model_folder)
    assert command[command.index("--model") + 1] == str(model_folder)
    assert command[-6:] == ["--port", "8001", "--max-lora-rank", "16", "--host", "::1"]


@pytest.mark.parametrize(
    "arguments", [["--api-key", "k"], ["--middleware=x.y"], ["--served-model-name", "n"], ["--api-server-count", "2"]]
)
def test_what_the_server_sets_itself_is_refused(
    arguments: list[str], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample-server", str(model_folder), *arguments]) == EXIT_FAILED
    name = arguments[0].partition("=")[0]
    assert f"invalid_spec: {name}: a sample server sets it itself" in capsys.readouterr().err


def test_a_server_for_others_needs_a_key(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(SpecError, match=r"--host 0.0.0.0: others could use the server; set VLLM_API_KEY"):
        server_command(str(model_folder), ["--host", "0.0.0.0"])
    monkeypatch.setenv("VLLM_API_KEY", "k")
    assert server_command(str(model_folder), ["--host", "0.0.0.0"])[-1] == "0.0.0.0"
