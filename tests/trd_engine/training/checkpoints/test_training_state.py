"""Where a run stands, written down and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trd_engine.runtime.distributed import World
from trd_engine.training.checkpoints.state import (
    TrainingState,
    restore_optimizer,
    restore_torch_random,
    torch_random_state,
    write_state,
)


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a small model and its optimizer after one update."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_all_of_the_optimizers_state_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained()
    write_state(tmp_path, TrainingState("f"), model, optimizer)
    fresh = torch.optim.AdamW(model.parameters(), fused=True)
    restore_optimizer(tmp_path, model, fresh)
    for parameter in model.parameters():
        ours, theirs = fresh.state[parameter], optimizer.state[parameter]
        assert ours.keys() == theirs.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_all_of_it_comes_back_on_the_parameters_own_device(tmp_path: Path) -> None:
    """A fused update on a GPU reads its step count there; the meta device stands for it on machines without one."""
    model, optimizer = trained()
    write_state(tmp_path, TrainingState("f"), model, optimizer)
    elsewhere = torch.nn.Linear(3, 2, device="meta")
    fresh = torch.optim.AdamW(elsewhere.parameters())
    restore_optimizer(tmp_path, elsewhere, fresh)
    devices = {value.device.type for state in fresh.state.values() for value in state.values()}
    assert devices == {"meta"}


def test_a_part_of_several_processes_is_the_same_file_after_a_resume(tmp_path: Path) -> None:
    model, optimizer = trained()
    for rank in range(2):
        write_state(tmp_path / "saved", TrainingState("f"), model, optimizer, World(rank, 2))
    fresh = torch.optim.AdamW(model.parameters(), fused=True)
    restore_optimizer(tmp_path / "saved", model, fresh)
    write_state(tmp_path / "again", TrainingState("f"), model, fresh, World(0, 2))
    saved, again = (tmp_path / name / "optimizer-00001-of-00002.safetensors" for name in ("saved", "again"))
    assert saved.read_bytes() == again.read_bytes()


def test_a_run_on_the_cpu_leaves_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver counts a GPU even if it is too old for PyTorch's CUDA, whose start then fails, as it does here."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(AssertionError):
        torch.cuda.get_rng_state(0)
    states = torch_random_state()
    assert states.keys() == {"cpu"}
    restore_torch_random({**states, "cuda0": states["cpu"]})
