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
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
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


def short_spec(data: Path, **changes: Any) -> dict[str, Any]:
    """Return a spec of two steps."""
    budgets = {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 12}
    refine = {"max_prompt_tokens": 192, "max_new_tokens": 12}
    base = {"optim": {"learning_rate": 1e-3, "batch_size": 4}, "diagnosis": {"num_trajectories": 4}}
    return spec(data, **{**base, "sampling": budgets, "refine": refine, **changes})


def half_spec(data: Path) -> dict[str, Any]:
    """Return the spec of a run in bf16 with LoRA and a teacher that follows the student."""
    return short_spec(
        data,
        teacher=None,
        device="cuda",
        lora={"rank": 4, "alpha": 8},
        teacher_update={"kind": "ema", "decay": 0.9},
        checkpoints={"every_steps": 1, "keep": 5},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=8, heldout=2)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs on the rehearsed GPU."""
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def reports(library: Path, data: Path, out: Path) -> dict[str, Any]:
    """What each scene reports; all of them in one process, which takes long to start."""
    for name, document in {"fp32": short_spec(data, device="cuda", precision="fp32"), "bf16": half_spec(data)}.items():
        (out / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    runs = {name: ["run", str(out / f"{name}.json"), str(out / name)] for name in ("fp32", "bf16")}
    first = checkpoint_folder(out / "bf16", 1)
    runs["resumed"] = ["run", str(out / "bf16.json"), str(out / "resumed"), str(first)]
    scenes = {"mixtures": ["mixtures"], "steps": ["steps"], **runs}
    result = subprocess.run(
        [sys.executable, "-m", "tests.trd_engine.gpu_rehearsal.scene", str(library), json.dumps([*scenes.values()])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-6000:]
    lines = result.stdout.splitlines()[-len(scenes) :]
    return dict(zip(scenes, map(json.loads, lines), strict=True))


def test_what_a_gpu_refuses_is_refused(reports: dict[str, Any]) -> None:
    """Otherwise the other tests could not fail."""
    report = reports["mixtures"]
    assert sorted(report["refused"]) == sorted(report["mistakes"])
    assert report["gradient"] == [0.0, 2.0, 0.0, 2.0]


def test_steps_come_to_the_same(reports: dict[str, Any]) -> None:
    """Losses of each kind and support, masks, a served teacher, LoRA, bf16 with the variable-length kernel."""
    report = reports["steps"]
    assert len(report) == 8
    for name, variant in report.items():
        cpu, gpu, calls = variant["cpu"], variant["gpu"], variant["kernel_calls"]
        is_half = name.startswith("bf16")
        # The kernel keeps more digits than the CPU's attention in bf16, and Adam's first steps are as large as it says.
        tolerance = 5e-2 if is_half else 1e-4
        for mine, theirs in zip(gpu["steps"], cpu["steps"], strict=True):
            for figure in ("loss", "grad_norm", "divergence_p95", "student_entropy", "teacher_perplexity"):
                assert mine[figure] == pytest.approx(theirs[figure], rel=tolerance), (name, figure)
        assert gpu["heldout_divergence"] == pytest.approx(cpu["heldout_divergence"], rel=tolerance), name
        assert gpu["update_norm"] == pytest.approx(cpu["update_norm"], rel=tolerance), name
        assert (calls.get(FORWARD, 0) > 0) == (calls.get(BACKWARD, 0) > 0) == is_half, name


@pytest.mark.usefixtures("reports")
def test_a_whole_run_in_fp32_is_the_cpus(data: Path, out: Path, tmp_path: Path) -> None:
    """Sampling, refining, verifying, training, evaluation and the saved weights."""
    here, there = tmp_path / "cpu", out / "fp32"
    distil(RunConfig.model_validate(short_spec(data, precision="fp32")), here)
    assert metric(there, "loss") == pytest.approx(metric(here, "loss"), rel=1e-4)
    scores_there, scores_here = (events(out, "finished")[0]["summary"]["scores"] for out in (there, here))
    assert scores_there == scores_here
    weights = [load_file(next(folder.rglob("step-00000002/model/model.safetensors"))) for folder in (here, there)]
    assert weights[0].keys() == weights[1].keys()
    for name, mine in weights[0].items():
        # Adam moves a weight of hardly any gradient by its sign: rounding may decide it.
        assert torch.allclose(weights[1][name], mine, rtol=0, atol=2e-3), name
        assert (weights[1][name] - mine).norm() <= 1e-3 * mine.norm(), name


def test_a_run_as_on_a_gpu_is_resumed(reports: dict[str, Any], out: Path) -> None:
    """bf16, LoRA, layers computed again, a teacher that follows the student; resumed, it ends bitwise the same."""
    assert reports["bf16"]["kernel_calls"][FORWARD] > 0
    assert reports["bf16"]["kernel_calls"][BACKWARD] > 0
    last, last_again = (checkpoint_folder(out / name, 2) for name in ("bf16", "resumed"))
    ended = {path.relative_to(last): load_file(path) for path in last.rglob("*.safetensors")}
    assert ended
    for path, tensors in ended.items():
        again = load_file(last_again / path)
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items()), path
