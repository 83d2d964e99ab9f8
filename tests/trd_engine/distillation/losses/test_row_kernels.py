"""The loss by Triton's kernels: Triton's interpreter runs the tests of the loss with them, and its compiler translates
them for a GPU that is not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trd_engine.distillation.losses import row_kernels
from trd_engine.distillation.losses.row_kernels import uses_kernels

HERE = Path(__file__).parent
ROOT = HERE.parents[3]

COMPILE = """
import itertools, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trd_engine.distillation.losses import triton_kernels
from trd_engine.distillation.losses.row_kernels import BLOCK, ROWS

COMMON = {"INVERSE": 1.25, "LOG_ODDS": 0.0, "LOG_REST": -0.7, "ACC": tl.float32, "ROWS": ROWS, "BLOCK": BLOCK}
CAPS = {"STUDENT_SCALE": 1.0, "STUDENT_CAP": 30.0, "TEACHER_SCALE": 1.0, "TEACHER_CAP": 0.0}
POINTERS = {"skipped": "*i8", "token_ids": "*i64", "weights": "*fp32", "numbers": "*fp32", "sums": "*fp32"}
KINDS, MODES = (1, 2, 3, 4), (False, True)
VARIANTS = [("pair_sums", COMMON | CAPS | {"KIND": kind, "MODES": modes}) for kind in KINDS for modes in MODES]
VARIANTS += [("jsd_sums", COMMON | CAPS)]
VARIANTS += [("write_gradient", COMMON | CAPS | {"KIND": kind}) for kind in KINDS]
USUAL = [v for v in VARIANTS if v[1].get("KIND", 1) == 1 and not v[1].get("MODES")]
TARGETS = [(90, v) for v in VARIANTS] + [(capability, v) for capability in (75, 120) for v in USUAL]
for capability, (name, constants) in TARGETS:
    kernel = getattr(triton_kernels, name)
    pointers = POINTERS | {"raw": "*bf16", "student": "*bf16", "teacher": "*bf16"}
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}
    places = {n: (i,) for i, n in enumerate(kernel.arg_names)}
    constants = {places[n]: value for n, value in constants.items() if n in places}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs={})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert len(compiled.asm["cubin"]) > 1000
    print(name)
"""


def run(*command: str, **environment: str) -> str:
    """Run Python in a separate process: Triton reads TRITON_INTERPRET when it is imported."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    return result.stdout


def run_tests(files: list[str], selection: str) -> str:
    """Run tests of this folder with the kernels; the interpreter's NumPy warns of the infinities in masked rows."""
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", "-k", selection]
    paths = [str(HERE / file) for file in files]
    return run("-m", "pytest", *options, *paths, TRITON_INTERPRET="1", TRD_LOSS_KERNEL="triton")


@pytest.mark.extended
def test_interpreted_kernels_pass_the_tests_of_the_loss() -> None:
    """All but those that take thousands of launches, and those of products or of CPU's sizes.

    No kernel knows of a clip or of the top-k tokens' products: of both variants the interpreter has one.
    """
    files = ["test_token_statistics.py", *(path.name for path in HERE.glob("test_linear_divergence*.py"))]
    slow = "many_chunks chunk_size_changes larger_than bf16_is_the_same without]"
    others = "waited_for frozen_head_costs top_k_tokens_rows two_runs multiplied_out takes_the_gradient"
    twice = "-0.0] whole"
    output = run_tests(files, " and ".join(f"not {name}" for name in f"{slow} {others} {twice}".split()))
    assert " passed" in output


@pytest.mark.extended
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    output = run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_DEFAULT_FP_FUSION="1")
    assert len(output.splitlines()) == 13 + 2 * 3


def test_kernels_run_on_a_gpu_and_nowhere_else_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.delenv("TRD_LOSS_KERNEL", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(row_kernels, "kernel_fault", lambda _: "")
    assert [uses_kernels(cpu), uses_kernels(gpu)] == [False, True]
    monkeypatch.setenv("TRD_LOSS_KERNEL", "torch")
    assert [uses_kernels(cpu), uses_kernels(gpu)] == [False, False]
    monkeypatch.setenv("TRD_LOSS_KERNEL", "triton")
    assert uses_kernels(gpu)
    with pytest.raises(ValueError, match="TRD_LOSS_KERNEL is triton, which needs a GPU"):
        uses_kernels(cpu)
    monkeypatch.setenv("TRD_LOSS_KERNEL", "fast")
    with pytest.raises(ValueError, match="TRD_LOSS_KERNEL is 'fast': use auto, triton or torch"):
        uses_kernels(cpu)


def test_kernels_that_fail_are_replaced_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here they do fail: Triton's compiled kernels refuse tensors on a CPU."""
    row_kernels.kernel_fault.cache_clear()
    with pytest.warns(UserWarning, match="by plain operations, because Triton does not run on cpu"):
        fault = row_kernels.kernel_fault(torch.device("cpu"))
    row_kernels.kernel_fault.cache_clear()
    assert "does not run on cpu" in fault
    monkeypatch.setattr(row_kernels, "kernel_fault", lambda _: fault)
    monkeypatch.delenv("TRD_LOSS_KERNEL", raising=False)
    assert not uses_kernels(torch.device("cuda", 0))
    monkeypatch.setenv("TRD_LOSS_KERNEL", "triton")
    with pytest.raises(ValueError, match="does not run on cpu"):
        uses_kernels(torch.device("cuda", 0))
