"""One process = two processes: the same trajectories, losses and weights; each resumes the other's checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.trd_engine.tiny_runs import events, metric, spec, write_data
from tests.trd_engine.torchrun import run_engine, scene
from trd_engine.config import parse_config
from trd_engine.models.sharded_file import PartsReader
from trd_engine.runtime.errors import SpecError
from trd_engine.teachers.moving_weights import TEACHER_WEIGHTS
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest
from trd_engine.training.loop import distil

FULL: dict[str, Any] = {"rounds": 2}
LORA: dict[str, Any] = {"rounds": 2, "teacher": None, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}
EMA: dict[str, Any] = {"mode": "opsd", "loss": {}, "teacher": None, "teacher_update": {"kind": "ema", "decay": 0.9}}
MOVING: dict[str, Any] = {**LORA, "teacher_update": {"kind": "ema", "decay": 0.5}}
WEIGHTS: dict[str, dict[str, Any]] = {
    "places": {"skip_special_tokens": True, "skip_first_tokens": 1, "prefix_tokens": 40},
    "entropy": {"entropy_share": 0.5},
    "soft or": {"entropy_share": 0.5, "entropy_score": "soft_or"},
    "drift": {"drift_gamma": 0.5},
    "pass rate": {"pass_rate": True},
    "all": {"entropy_share": 0.5, "drift_gamma": 0.5, "skip_special_tokens": True, "pass_rate": True},
}
"""Of tokens, by the option that makes them."""
SHORT: dict[str, dict[str, Any]] = {
    "plain": {},
    **{name: {"loss": {"teacher_context": "refine", "token_weights": weights}} for name, weights in WEIGHTS.items()},
    "moving adapter": {**MOVING, "optim": {"learning_rate": 3e-3, "batch_size": 12}},
}
"""Changes to `short_spec`, by the name of the run."""
METRICS = ("loss", "grad_norm", "divergence_p95", "student_perplexity", "heldout_forward_kl", "rollout_accuracy")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def finish(document: dict[str, Any], out: Path, *, resume: bool = False) -> None:
    done = run_engine(document, out, resume=resume)
    assert done.returncode == 0, done.stdout + done.stderr


def trajectories(out: Path, round_index: int) -> list[Any]:
    lines = (out / "rounds" / f"{round_index:04d}" / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["token_ids"] for line in lines]


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    folder = checkpoint_folder(out, step)
    assert verify_manifest(folder)["step"] == step
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else folder / "model" / "model.safetensors")


def assert_alike(ours: Path, theirs: Path, step: int) -> None:
    for name in METRICS:
        assert metric(ours, name) == pytest.approx(metric(theirs, name), rel=1e-5), name
    one, other = weights(ours, step), weights(theirs, step)
    assert one.keys() == other.keys()
    for name in one:
        # Adam turns the last bit of a gradient near zero into a visible step; hence the looser bound here.
        assert (one[name] - other[name]).norm() <= 1e-4 * one[name].norm(), name


@pytest.mark.parametrize("changes", [FULL, LORA], ids=["full, another model teaches", "LoRA, teaches itself"])
def test_two_processes_do_what_one_does(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    distil(parse_config(spec(data, **changes)), tmp_path / "one")
    finish(spec(data, devices=2, **changes), tmp_path / "two")
    for round_index in (0, 1):
        assert trajectories(tmp_path / "two", round_index) == trajectories(tmp_path / "one", round_index)
    assert_alike(tmp_path / "two", tmp_path / "one", 4)
    AutoModelForCausalLM.from_pretrained(checkpoint_folder(tmp_path / "two", 4) / "model")
    assert len(events(tmp_path / "two", "finished")) == 1


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Short runs by name, of one process and of two."""
    data, one, two = (tmp_path_factory.mktemp(name) for name in ("data", "one", "two"))
    write_data(data, train=12)
    for name, changes in SHORT.items():
        (two / f"{name}.json").write_text(json.dumps(short_spec(data, devices=2, **changes)), encoding="utf-8")
        distil(parse_config(short_spec(data, **changes)), one / name)
    with scene("each", str(two), num_processes=2) as launcher:
        printed, _ = launcher.communicate(timeout=400)
    assert launcher.returncode == 0, printed
    return {name: (one / name, two / name) for name in SHORT}


def short_spec(data: Path, **changes: Any) -> dict[str, Any]:
    """Two steps on four samples of each of twelve problems, enough to tell the easy ones from the hard."""
    base: dict[str, Any] = {"samples_per_prompt": 4, "optim": {"learning_rate": 1e-3, "batch_size": 24}}
    base |= {"sampling": {"engine": "transformers", "temperature": 1.0, "max_prompt_tokens": 64, "max_new_tokens": 48}}
    base |= {"refine": {"max_prompt_tokens": 192, "max_new_tokens": 48}, "checkpoints": {"every_steps": 1, "keep": 9}}
    base |= {"evaluation": {"holdout": 0.0}, "diagnosis": {"num_trajectories": 0}}
    return spec(data, **{**base, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_two_processes_weigh_tokens_as_one_does(both: dict[str, tuple[Path, Path]], name: str) -> None:
    one, two = both[name]
    assert trajectories(two, 0) == trajectories(one, 0)
    assert metric(two, "kept_token_share") == pytest.approx(metric(one, "kept_token_share"), rel=1e-5)
    assert_alike(two, one, 2)
    assert metric(one, "loss") != metric(both["plain"][0], "loss")  # the weights are no ones


@pytest.mark.slow
def test_a_moving_adapter_teaches_two_processes_what_it_teaches_one(
    both: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    one, two = both["moving adapter"]
    for round_index in (0, 1):
        assert trajectories(two, round_index) == trajectories(one, round_index)
    assert_alike(two, one, 4)
    assert_teachers_alike(two, one, 4)
    config = parse_config(json.loads((two.parent / f"{two.name}.json").read_text(encoding="utf-8")) | {"devices": 1})
    distil(config, tmp_path, resume_from=checkpoint_folder(two, 1))
    assert trajectories(tmp_path, 1) == trajectories(one, 1)
    assert metric(tmp_path, "loss") == pytest.approx(metric(one, "loss")[1:], rel=1e-5)
    assert_teachers_alike(tmp_path, one, 4)


def assert_teachers_alike(ours: Path, theirs: Path, step: int) -> None:
    """Of a teacher that moves, and has moved."""
    readers = [PartsReader(checkpoint_folder(out, step) / "state", TEACHER_WEIGHTS) for out in (ours, theirs)]
    begun = PartsReader(checkpoint_folder(theirs, 0) / "state", TEACHER_WEIGHTS)
    assert readers[0].names == readers[1].names
    shapes = load_file(checkpoint_folder(theirs, step) / "state" / f"{TEACHER_WEIGHTS}.safetensors")
    has_moved = False
    for name, alike in shapes.items():
        one, other, first = (torch.empty_like(alike) for _ in range(3))
        for reader, target in zip((*readers, begun), (one, other, first), strict=True):
            reader.read_into(name, target)
        assert (one - other).norm() <= 1e-4 * one.norm(), name
        has_moved |= not torch.equal(first, other)
    assert has_moved


@pytest.mark.slow
@pytest.mark.parametrize("changes", [FULL, LORA, EMA, MOVING], ids=["full", "LoRA", "moving average", "moving adapter"])
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    data: Path, tmp_path: Path, changes: dict[str, Any], first: int, then: int
) -> None:
    often = {**changes, "checkpoints": {"every_steps": 1, "keep": 9}}
    finish(spec(data, devices=first, **often), tmp_path / "whole")
    last = events(tmp_path / "whole", "finished")[0]["step"]
    shutil.copytree(checkpoint_folder(tmp_path / "whole", 1), checkpoint_folder(tmp_path / "resumed", 1))
    finish(spec(data, devices=then, **often), tmp_path / "resumed", resume=True)
    assert metric(tmp_path / "resumed", "loss") == pytest.approx(metric(tmp_path / "whole", "loss")[1:], rel=1e-5)
    one, other = weights(tmp_path / "whole", last), weights(tmp_path / "resumed", last)
    assert all((one[name] - other[name]).norm() <= 1e-4 * one[name].norm() for name in one)


@pytest.mark.slow
def test_two_processes_are_bitwise_equal_to_themselves_after_a_resume(data: Path, tmp_path: Path) -> None:
    often = {**LORA, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}, "checkpoints": {"every_steps": 1, "keep": 9}}
    finish(spec(data, devices=2, **often), tmp_path / "whole")
    shutil.copytree(checkpoint_folder(tmp_path / "whole", 1), checkpoint_folder(tmp_path / "resumed", 1))
    finish(spec(data, devices=2, **often), tmp_path / "resumed", resume=True)
    one, other = weights(tmp_path / "whole", 4), weights(tmp_path / "resumed", 4)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_shards_may_be_empty_and_layers_computed_twice(data: Path, tmp_path: Path) -> None:
    """Four processes divide adapters of rank 2, with the gradient checkpointing that GPUs have by default."""
    optim = {"learning_rate": 1e-3, "batch_size": 16, "gradient_checkpointing": True}
    changes = {**LORA, "lora": {"rank": 2, "alpha": 8}, "optim": optim, "checkpoints": {"every_steps": 1, "keep": 9}}
    distil(parse_config(spec(data, **changes)), tmp_path / "one")
    finish(spec(data, devices=4, **changes), tmp_path / "four")
    last = events(tmp_path / "one", "finished")[0]["step"]
    assert_alike(tmp_path / "four", tmp_path / "one", last)
    shutil.copytree(checkpoint_folder(tmp_path / "four", 1), checkpoint_folder(tmp_path / "resumed", 1))
    finish(spec(data, devices=1, **changes), tmp_path / "resumed", resume=True)
    assert metric(tmp_path / "resumed", "loss") == pytest.approx(metric(tmp_path / "one", "loss")[1:], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [FULL, LORA], ids=["full", "LoRA"])
def test_bf16_follows_fp32(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    once = {**changes, "rounds": 1}
    finish(spec(data, devices=2, precision="bf16", **once), tmp_path / "bf16")
    finish(spec(data, devices=2, **once), tmp_path / "fp32")
    # The trajectories are other ones: a sample in bf16 parts from one in fp32 at the first near tie.
    assert metric(tmp_path / "bf16", "loss")[0] == pytest.approx(metric(tmp_path / "fp32", "loss")[0], rel=0.25)
    kept = weights(tmp_path / "bf16", 3)
    assert all(tensor.dtype == torch.float32 for tensor in kept.values())


def test_a_process_without_a_trajectory_computes_in_vain(data: Path, tmp_path: Path) -> None:
    """A batch of one trajectory: the step is the same."""
    changes = {"optim": {"learning_rate": 1e-3, "batch_size": 1, "max_steps": 1}, "mode": "opd", "loss": {}}
    changes |= {"evaluation": {"holdout": 0.0}, "diagnosis": {"num_trajectories": 0}}
    distil(parse_config(spec(data, **changes)), tmp_path / "one")
    finish(spec(data, devices=2, **changes), tmp_path / "two")
    assert metric(tmp_path / "two", "loss") == pytest.approx(metric(tmp_path / "one", "loss"), rel=1e-5)
    assert metric(tmp_path / "two", "grad_norm") == pytest.approx(metric(tmp_path / "one", "grad_norm"), rel=1e-5)


def test_a_failure_of_both_ends_the_run_with_its_reason(data: Path, tmp_path: Path) -> None:
    done = run_engine(spec(data, devices=2, sampling={"max_prompt_tokens": 1, "max_new_tokens": 8}), tmp_path / "out")
    assert done.returncode != 0
    assert "no problem is left to train on" in done.stderr


def test_devices_without_processes_are_refused_with_the_command(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="devices = 2, but the run has 1 process: start it by torchrun"):
        distil(parse_config(spec(data, devices=2)), tmp_path)
