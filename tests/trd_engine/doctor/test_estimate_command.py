"""``python -m trd_engine estimate`` counts a spec's rows and prints every phase."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trd_engine.cli import main
from trd_engine.config import parse_config
from trd_engine.doctor import estimate
from trd_engine.doctor.findings import FailedError, Machine, NotTriedError
from trd_estimate.hardware import HARDWARE

MODELS = Path(__file__).parents[3] / "testbed" / "models"


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"problem": f"{i} + 1", "answer": str(i + 1)}) + "\n" for i in range(100)))
    return {
        "mode": "trd",
        "student": str(MODELS / "tiny-student"),
        "teacher": str(MODELS / "tiny-teacher"),
        "dataset": {"path": str(rows)},
    }


def run(folder: Path, spec: dict[str, Any], *options: str) -> int:
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    return main(["estimate", str(path), *options])


def test_every_phase_is_estimated(tmp_path: Path, spec: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, spec, "--device", "h100", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["hardware"]["kind"], found["counts"]["num_problems"]) == ("h100", 100)
    heldout = found["counts"]["num_heldout"]
    assert found["counts"]["num_trajectories"] == 100 - heldout
    phases = {one["phase"]: one for one in found["phases"]}
    assert sum(one["seconds"] for one in phases.values()) == pytest.approx(found["seconds"])
    assert found["evaluation_share"] == pytest.approx(phases["evaluating"]["seconds"] / found["seconds"])
    assert run(tmp_path, spec, "--device", "h100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:9]] == list(phases)
    assert "kv cache" in next(line for line in lines if line.startswith("rollout"))
    assert "computed from expected lengths and peak figures of h100" in lines[-1]


def test_the_device_of_this_machine_and_a_run_that_does_not_fit(
    tmp_path: Path, spec: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, spec) == 0
    assert "cpu" in capsys.readouterr().out.splitlines()[0]
    spec["sampling"] = {"max_new_tokens": 10**9}
    assert run(tmp_path, spec, "--device", "a100-40gb") == 1
    assert "sampling.max_prompt_tokens + sampling.max_new_tokens = 1000002048" in capsys.readouterr().out
    assert run(tmp_path, spec | {"teacher": "/absent"}) == 1
    assert capsys.readouterr().err.startswith("model_not_found: teacher '/absent' was not found")


def test_the_doctor_finds_a_spec_for_which_there_is_no_room(
    tmp_path: Path, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(NotTriedError):
        estimate.check_estimate(Machine(cpu, tmp_path))
    assert "GB of disk" in estimate.check_estimate(Machine(cpu, tmp_path, parse_config(spec)))
    with monkeypatch.context() as planted:
        planted.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(FailedError, match="the run's files take") as found:
            estimate.check_estimate(Machine(cpu, tmp_path, parse_config(spec)))
        assert "lower checkpoints.keep" in found.value.remedy
    monkeypatch.setattr(estimate, "local_hardware", lambda device: HARDWARE["l40s"])
    with monkeypatch.context() as planted:
        planted.setattr("os.sysconf", lambda name: 10)
        with pytest.raises(FailedError, match="sleeping engines and checkpoints take"):
            estimate.check_estimate(Machine(cpu, tmp_path, parse_config(spec)))
    spec["refine"] = {"max_new_tokens": 10**9}
    with pytest.raises(FailedError, match=r"refine\.max_prompt_tokens \+ refine\.max_new_tokens = 1000018432"):
        estimate.check_estimate(Machine(cpu, tmp_path, parse_config(spec)))
