"""trackio, in a separate environment: it needs an older pillow than vLLM's packages bring.

``TRD_TRACKERS_VENV`` names one; without it the test makes one from the package registry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.extended
CHECKOUT = Path(__file__).parents[2]
VENV = os.environ.get("TRD_TRACKERS_VENV")  # read before the tests' fixture removes TRD_ variables


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with trackio."""
    if VENV:
        return f"{VENV}/bin/python"
    folder = tmp_path_factory.mktemp("trackers")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "trackio==0.43.0"]
    subprocess.run([f"{folder}/bin/python", *install], check=True, timeout=500)
    return f"{folder}/bin/python"


def follow(python: str, folder: Path, integration: dict[str, Any], steps: range, **environment: str) -> dict[str, Any]:
    """Report one attempt's steps; return the process's last word."""
    (folder / "run").mkdir(parents=True)
    config = {"job_id": "job_1", "name": "a name", "spec": {"seed": 1}, "integrations": [integration]}
    (folder / "trackers.json").write_text(json.dumps({**config, "folder": str(folder.parent / "trackers")}))
    scores = dict.fromkeys(("avg_at_k", "avg_low", "avg_high", "pass_at_k", "pass_low", "pass_high"), 0.5)
    lines = [{"type": "metrics", "step": step, "values": {"loss": 1 / step, "bad": None}} for step in steps]
    lines.append({"type": "evaluation", "step": 6, "dataset": "held out", **scores})
    (folder / "run" / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "trackers.end").write_text("finished")
    command = [python, "-m", "worker.trackers.follow", str(folder), "0"]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
    subprocess.run(command, env=env, check=True, timeout=120, cwd=folder)
    status: dict[str, Any] = json.loads((folder / "tracker-0.json").read_text())
    return status


def read(python: str, code: str, **environment: str) -> Any:
    """Run a program, and return the JSON that it prints."""
    done = subprocess.run([python, "-c", code], env={**os.environ, **environment}, check=True, capture_output=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_trackio_has_every_step_once(python: str, tmp_path: Path) -> None:
    wanted = {"type": "trackio", "project": "trd-tests", "name": None}
    for number, steps in enumerate((range(1, 4), range(3, 7))):
        assert follow(python, tmp_path / f"attempt-{number}", wanted, steps)["state"] == "done"
    points = read(
        python,
        "import json; from trackio.sqlite_storage import SQLiteStorage\n"
        "print(json.dumps(SQLiteStorage.get_logs('trd-tests', 'job_1'), default=str))",
        TRACKIO_DIR=str(tmp_path / "trackers" / "trackio"),
    )
    assert [point["step"] for point in points if "loss" in point] == [1, 2, 3, 4, 5, 6]
    assert [point["step"] for point in points if "held out/avg_at_k" in point] == [6]
