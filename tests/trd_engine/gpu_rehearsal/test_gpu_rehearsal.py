"""The engine on a GPU that is only rehearsed: every tensor where it belongs, and the values the CPU's.

What a real one would add, speed, memory, its kernels' rounding, NCCL and vLLM, is not seen here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trd_engine.gpu_rehearsal import device
from tests.trd_engine.tiny_runs import events, metric, spec, write_data
from trd_engine.config import RunConfig
from trd_engine.training.loop import distil

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.extended

FORWARD, BACKWARD = "_varlen_attn", "_varlen_attn_backward"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return device.build(tmp_path_factory.mktemp("device"))
    except device.CompilerMissingError as error:
        pytest.skip(str(error))


def scene(library: Path, *arguments: str) -> dict[str, Any]:
    """What a scene reports, or the failure of this test with what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.trd_engine.gpu_rehearsal.scene", str(library), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-6000:]
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


def test_what_a_gpu_refuses_is_refused(library: Path) -> None:
    """Else the other tests could not fail."""
    report = scene(library, "mixtures")
    assert sorted(report["refused"]) == sorted(report["mistakes"])
    assert report["gradient"] == [0.0, 2.0, 0.0, 2.0]


def test_steps_come_to_the_same(library: Path) -> None:
    """Losses of each kind and support, masks, a served teacher, LoRA, bf16 with the variable-length kernel."""
    report = scene(library, "steps")
    assert len(report) == 8
    for name, variant in report.items():
        cpu, gpu, calls = variant["cpu"], variant["gpu"], variant["kernel_calls"]
        is_half = name.startswith("bf16")
        # The kernel keeps more digits than the CPU's attention in bf16, and Adam's first steps are as large as it says.
        tolerance = 5e-2 if is_half else 1e-4
        for mine, theirs in zip(gpu["steps"], cpu["steps"], strict=True):
            for figure in ("loss", "grad_norm", "divergence_p95", "student_entropy", "teacher_perplexity"):
                assert mine[figure] == pytest.approx(theirs[figure], rel=tolerance), (name, figure)
        assert gpu["yardstick"] == pytest.approx(cpu["yardstick"], rel=tolerance), name
        assert gpu["update_norm"] == pytest.approx(cpu["update_norm"], rel=tolerance), name
        assert (calls.get(FORWARD, 0) > 0) == (calls.get(BACKWARD, 0) > 0) == is_half, name


def test_a_whole_run_in_fp32_is_the_cpus(library: Path, tmp_path: Path) -> None:
    """Sampling, refining, verifying, training, evaluation and the saved weights."""
    data = write_data(tmp_path / "data", train=16, heldout=4)
    changes: dict[str, Any] = {"precision": "fp32", "optim": {"learning_rate": 1e-3, "batch_size": 8}}
    here, there = tmp_path / "cpu", tmp_path / "gpu"
    distil(RunConfig.model_validate(spec(data, **changes)), here)
    document = tmp_path / "spec.json"
    document.write_text(json.dumps(spec(data, device="cuda", **changes)), encoding="utf-8")
    scene(library, "run", str(document), str(there))

    assert metric(there, "loss") == pytest.approx(metric(here, "loss"), rel=1e-4)
    scores_there, scores_here = (events(out, "finished")[0]["summary"]["scores"] for out in (there, here))
    assert scores_there == scores_here
    weights = [load_file(next(folder.rglob("step-00000002/model/model.safetensors"))) for folder in (here, there)]
    assert weights[0].keys() == weights[1].keys()
    for name, mine in weights[0].items():
        # Adam moves a weight of hardly any gradient by its sign: rounding may decide it.
        assert torch.allclose(weights[1][name], mine, rtol=0, atol=2e-3), name
        assert (weights[1][name] - mine).norm() <= 1e-3 * mine.norm(), name


def test_a_run_as_on_a_gpu_is_resumed(library: Path, tmp_path: Path) -> None:
    """bf16, LoRA, layers computed again, a teacher that follows the student; resumed, it ends bitwise the same."""
    data = write_data(tmp_path / "data", train=16, heldout=4)
    document = tmp_path / "spec.json"
    changes: dict[str, Any] = {
        "mode": "trd",
        "teacher": None,
        "device": "cuda",
        "lora": {"rank": 4, "alpha": 8},
        "teacher_update": {"kind": "ema", "decay": 0.9},
        "optim": {"learning_rate": 1e-3, "batch_size": 8},
        "checkpoints": {"every_steps": 1, "keep": 5},
    }
    document.write_text(json.dumps(spec(data, **changes)), encoding="utf-8")
    out = tmp_path / "run"
    calls = scene(library, "run", str(document), str(out))["kernel_calls"]
    assert calls[FORWARD] > 0
    assert calls[BACKWARD] > 0
    last = next(out.rglob("step-00000002"))
    ended = {path.relative_to(last): load_file(path) for path in last.rglob("*.safetensors")}
    for path in sorted(last.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    last.rmdir()

    scene(library, "run", str(document), str(out), "--resume")
    for path, tensors in ended.items():
        again = load_file(last / path)
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items()), path
