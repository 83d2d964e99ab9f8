"""What is done on the rehearsed GPU, in a separate process: see `test_gpu_rehearsal`.

    python -m tests.trd_engine.gpu_rehearsal.scene LIBRARY '[["mixtures"], ["steps"], ["run", SPEC, OUT]]'

Each scene is a line of JSON, the process's last ones. Modules that import torch are imported after the device is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trd_engine.gpu_rehearsal import device


def steps() -> dict[str, Any]:
    """Take every variant of a step on both devices, and name the kernels of CUDA that it called."""
    from tests.trd_engine.gpu_rehearsal.gpu import CPU, GPU, rehearsed_gpu
    from tests.trd_engine.gpu_rehearsal.variants import VARIANTS, take_two_steps

    compared: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        here = take_two_steps(variant, CPU)
        with rehearsed_gpu() as kernel_calls:
            there = take_two_steps(variant, GPU)
            compared[name] = {"cpu": here, "gpu": there, "kernel_calls": dict(kernel_calls)}
    return compared


def run(spec: str, out: str, before: str | None = None) -> dict[str, Any]:
    """Run a whole spec, or what follows the checkpoint `before`."""
    from tests.trd_engine.gpu_rehearsal.gpu import rehearsed_gpu
    from trd_engine.config import RunConfig
    from trd_engine.training.loop import distil as run_engine

    with rehearsed_gpu() as kernel_calls:
        config = RunConfig.model_validate_json(Path(spec).read_text(encoding="utf-8"))
        run_engine(config, Path(out), resume_from=None if before is None else Path(before))
    return {"kernel_calls": dict(kernel_calls)}


def mixtures() -> dict[str, Any]:
    """Return the mixtures of devices that a GPU refuses, and those that it takes."""
    import torch

    from tests.trd_engine.gpu_rehearsal.gpu import RehearsedTensor, rehearsed_gpu

    def count_here() -> None:
        parameter = torch.nn.Parameter(torch.ones(2, device="cuda"))
        parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW([parameter], fused=True)
        optimizer.step()
        optimizer.state[parameter]["step"] = torch.ones(())
        optimizer.step()

    mistakes: dict[str, Callable[[], object]] = {
        "sum": lambda: torch.ones(2, device="cuda") + torch.ones(2),
        "cat": lambda: torch.cat([torch.ones(2, device="cuda"), torch.ones(2)]),
        "gather": lambda: torch.ones(2, device="cuda").gather(0, torch.tensor([0])),
        "matmul": lambda: torch.nn.Linear(2, 2)(torch.ones(1, 2, device="cuda")),
        "numpy": lambda: torch.ones(2, device="cuda").numpy(),
        "step_count": count_here,
    }
    refused = {}
    with rehearsed_gpu():
        for name, mistake in mistakes.items():
            try:
                mistake()
            except (RuntimeError, TypeError) as error:
                refused[name] = str(error)
        values = torch.arange(4.0, device="cuda", requires_grad=True)
        (values[torch.tensor([1, 3])] * torch.tensor(2.0)).sum().backward()
        gradient = values.grad
        assert isinstance(gradient, RehearsedTensor)
        return {"mistakes": list(mistakes), "refused": refused, "gradient": gradient.tolist()}


SCENES: dict[str, Callable[..., dict[str, Any]]] = {"steps": steps, "run": run, "mixtures": mixtures}

if __name__ == "__main__":
    device.load(Path(sys.argv[1]))
    for name, *arguments in json.loads(sys.argv[2]):
        sys.stdout.write(json.dumps(SCENES[name](*arguments)) + "\n")
