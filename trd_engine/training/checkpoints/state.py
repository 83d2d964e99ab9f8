"""Where a run stands, and how that is written down and read back without a pickle.

A checkpoint's ``state/`` folder holds what resuming needs besides the folders to serve from: position in the run,
optimizer moments, random generators, the round's trajectories, the fixed held-out batch and the scores so far; the
exact weights if those of ``model/`` are rounded to bf16, and those of a teacher that follows the student.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trd_engine.models.sharded_file import PartsReader, write_parts
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.types import ScoreRow

OPTIMIZER_FILE = "optimizer"
STUDENT_FILE = "student"


@dataclass
class TrainingState:
    """Position of a run. It moves on only after an optimizer step, a collection or an evaluation is done."""

    data_fingerprint: str
    step: int = 0
    """Optimizer steps taken."""
    round: int = 0
    """The round that is being collected or trained on; equal to the number of rounds at the end."""
    round_step: int = 0
    """Steps taken in this round."""
    scores: list[ScoreRow] = field(default_factory=list)
    evaluated_at: list[int] = field(default_factory=list)
    """Steps at which the evaluation is complete, 0 for the baseline."""
    evaluation_fingerprint: str | None = None
    """Fingerprint of the evaluation problems, if they are not held out from the others."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last steps up to `step`: of all, unless the run was resumed from a checkpoint that kept none."""
    sampler_gap: float | None = None
    """The newest one, in nats."""
    identity: dict[str, Any] = field(default_factory=dict)
    """See `resume_checks.run_identity` and `weights_identity`."""

    @property
    def position(self) -> tuple[int, int]:
        """Step and round: the step that ends a round has two positions, since the next round is collected after it."""
        return self.step, self.round


def write_state(
    folder: Path, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer, world: World = ALONE
) -> None:
    """Write ``state.json``, ``random.safetensors`` and the optimizer's moments to `folder`: each machine's processes
    to their disk.

    The generators are the main process's: no result depends on those of the others, see `Session.train_step`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, parameter in _named_optimized(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{key}"] = value.detach()
    write_parts(folder, OPTIMIZER_FILE, tensors, world)
    if not world.is_main:
        return
    name, keys, *rest = numpy.random.get_state(legacy=True)
    numpy_random = [name, keys.tolist(), *rest]  # type: ignore[union-attr]  # legacy gives a tuple
    document = {"state": asdict(state), "python_random": random.getstate(), "numpy_random": numpy_random}
    (folder / "state.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    save_file(torch_random_state(), folder / "random.safetensors")


def read_state(folder: Path) -> TrainingState:
    """Return the position written by `write_state`."""
    document = json.loads((folder / "state.json").read_text(encoding="utf-8"))["state"]
    scores = [ScoreRow(**row) for row in document.pop("scores")]
    return TrainingState(**document, scores=scores)


def write_student(folder: Path, model: nn.Module, world: World) -> None:
    """Write the weights exactly as they are trained, for a run whose exported model is in a narrower dtype."""
    write_parts(folder, STUDENT_FILE, dict(model.named_parameters()), world)


def restore_student(folder: Path, model: nn.Module) -> None:
    """Put the weights written by `write_student` back, if there are any; else the exported model has all of them."""
    if not any(folder.glob(f"{STUDENT_FILE}*.safetensors")):
        return
    stored = PartsReader(folder, STUDENT_FILE)
    for name, parameter in model.named_parameters():
        stored.read_into(name, parameter)


def restore_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the moments written by `write_state` back, each to its parameter by name."""
    stored = PartsReader(folder, OPTIMIZER_FILE)
    for name, parameter in _named_optimized(model, optimizer):
        keys = [key for key in ("exp_avg", "exp_avg_sq", "step") if f"{name}|{key}" in stored.names]
        # The fused update reads the count on the parameter's device; a GPU cannot read the CPU's memory.
        count = partial(torch.zeros, (), device=parameter.device)
        moments = {key: count() if key == "step" else torch.zeros_like(parameter.detach()) for key in keys}
        for key, moment in moments.items():
            stored.read_into(f"{name}|{key}", moment)
        if moments:
            optimizer.state[parameter] = moments


def restore_random(folder: Path) -> None:
    """Restore every library's random generator."""
    document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    version, internal, gauss = document["python_random"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = document["numpy_random"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    restore_torch_random(load_file(folder / "random.safetensors"))


def _named_optimized(model: nn.Module, optimizer: torch.optim.Optimizer) -> Sequence[tuple[str, nn.Parameter]]:
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in model.named_parameters() if id(p) in optimized]


def torch_random_state() -> dict[str, Tensor]:
    """Return the states of torch's generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    for index in _gpus_in_use():
        states[f"cuda{index}"] = torch.cuda.get_rng_state(index)
    return states


def _gpus_in_use() -> range:
    """Return the numbers of the GPUs, none in a run on the CPU: asking for a generator starts CUDA, which may be broken
    on a machine that shows a GPU."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def restore_torch_random(states: Mapping[str, Tensor]) -> None:
    """Restore torch's generators to `states`, which `torch_random_state` returned."""
    torch.set_rng_state(states["cpu"])
    for index in _gpus_in_use():
        if f"cuda{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda{index}"], index)
