"""The check of a GPU, rehearsed on the CPU at a small size: the same code, with the device as an argument."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import arithmetic
from benchmarks.gpu_check.figures import Case, Figure
from trd_engine.distillation.losses import row_kernels

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [name for name in gpu_check.STAGES if name != "sharding"])
def test_a_stage_passes_at_a_small_size(stage: str, tmp_path: Path) -> None:
    figures = gpu_check.STAGES[stage][0](Case(torch.device("cpu"), True, tmp_path))
    assert figures
    for figure in figures:
        json.dumps(asdict(figure))


@pytest.mark.slow
def test_the_script_runs_stages_in_processes_and_sums_them_up() -> None:
    """Sharding here: it opens a process group."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--small", "--only", "sharding"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=550
    )
    result, *table = done.stdout.splitlines()
    assert json.loads(result)["status"] == "PASS", done.stdout + done.stderr
    assert done.returncode == 0
    assert [line.split(",")[0].split() for line in table[1:]] == [["PASS", "sharding"], ["full"], ["LoRA"]]


def test_a_stage_that_fails_or_hangs_ends_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import sys, time; time.sleep(60) if 'hangs' in sys.argv else sys.exit('it broke')"
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(gpu_check.sys, "executable", str(python))
    broken, hanging = gpu_check.run_stage("breaks", [], 30), gpu_check.run_stage("hangs", [], 0.5)
    assert (broken.status, broken.error) == ("FAIL", "it broke")
    assert (hanging.status, hanging.error) == ("FAIL", "it took more than 0 s")
    monkeypatch.setattr(gpu_check, "BUDGET_SECONDS", 1)
    (late,) = gpu_check.run_all(["machine"], [])
    assert late.status == "NOT TRIED"


def test_a_stage_gets_its_gpu_by_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Some of torch.cuda refuses a device without one, such as the limit on memory that `faults` sets."""
    devices = list[torch.device]()

    def stage(case: Case) -> list[Figure]:
        devices.append(case.device)
        return []

    monkeypatch.setitem(gpu_check.STAGES, "faults", (stage, 1))
    monkeypatch.setattr(gpu_check.sys, "argv", ["gpu_check", "--stage", "faults"])
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert gpu_check.main() == 0
    assert capsys.readouterr().out == "[]\n"
    assert devices == [torch.device("cuda", 0)]


def test_plain_operations_are_timed_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setenv("TRD_LOSS_KERNEL", "auto")
    monkeypatch.setattr(row_kernels, "kernel_fault", lambda _: "")
    with arithmetic._forced("torch"):
        assert not row_kernels.uses_kernels(gpu)
    assert row_kernels.uses_kernels(gpu)


def test_the_summary_compares_with_predictions() -> None:
    figures = [Figure("copy", 2.0, "TB/s", 4.0).__dict__, Figure("kernel", "flash").__dict__]
    text = gpu_check.summary([gpu_check.Result("machine", "PASS", 3.0, figures)])
    assert "PASS      machine, 3 s" in text
    assert text.splitlines()[2].split() == ["copy,", "TB/s", "2.0", "4", "0.50"]
