"""Weights that a resumed run loads again: the same ones, wherever they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.trd_engine.tiny_runs import MODELS, spec, write_data
from trd_engine.config import parse_config
from trd_engine.models import folders as subject
from trd_engine.models.folders import weights_fingerprint
from trd_engine.runtime.errors import SpecError
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.checkpoints.resume_checks import (
    require_same_run,
    require_same_weights,
    run_identity,
    weights_identity,
)
from trd_engine.training.loop import distil

ONE_STEP: dict[str, Any] = {
    "evaluation": {"holdout": 0.0},
    "diagnosis": {"num_trajectories": 0},
    "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 8},
    "optim": {"learning_rate": 1e-3, "batch_size": 16, "max_steps": 1},
    "mode": "opd",
    "loss": {},
}
SELF: dict[str, Any] = {"mode": "opsd", "teacher": None}


def other_model(folder: Path, name: str) -> str:
    """Copy a committed model, with one tensor changed."""
    shutil.copytree(MODELS / name, folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    key = sorted(weights)[0]
    save_file(weights | {key: weights[key] + 0.01}, path, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_resume_refuses_other_weights_and_takes_the_same_from_elsewhere(tmp_path: Path, role: str) -> None:
    data = write_data(tmp_path / "data", train=16)
    changes = {**ONE_STEP, "lora": {"rank": 2, "alpha": 4}}
    first = tmp_path / "first"
    distil(parse_config(spec(data, **changes)), first)
    checkpoint = checkpoint_folder(first, 0)
    other = other_model(tmp_path / "other", f"tiny-{role}")
    with pytest.raises(SpecError, match=f"needs the weights that it started with, and the {role}'s differ"):
        distil(parse_config(spec(data, **changes, **{role: other})), tmp_path / "out", resume_from=checkpoint)
    moved = shutil.copytree(MODELS / f"tiny-{role}", tmp_path / "moved")
    distil(parse_config(spec(data, **changes, **{role: str(moved)})), tmp_path / "out", resume_from=checkpoint)


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({}, {"teacher"}),
        ({"lora": {"rank": 2, "alpha": 4}}, {"student", "teacher"}),
        ({**SELF, "loss": {}}, {"teacher"}),
        ({**SELF, "loss": {}, "lora": {"rank": 2, "alpha": 4}}, {"student"}),
        ({**SELF, "loss": {}, "teacher_update": {"kind": "ema", "decay": 0.9}}, set()),
    ],
)
def test_what_counts_is_what_no_checkpoint_holds(tmp_path: Path, changes: dict[str, Any], roles: set[str]) -> None:
    found = weights_identity(parse_config(spec(tmp_path, **changes)))
    assert found.keys() == {f"weights.{role}" for role in roles}


def test_a_teacher_that_was_served_before_has_no_weights_to_compare() -> None:
    require_same_weights({"seed": 0}, {"weights.teacher": "f"})


def test_a_part_that_is_added_or_dropped_is_a_change(tmp_path: Path) -> None:
    full, lora = (parse_config(spec(tmp_path, lora=value)) for value in (None, {"rank": 2}))
    with pytest.raises(SpecError, match=r"lora\.rank = 2, and was None"):
        require_same_run(run_identity(full), lora)
    with pytest.raises(SpecError, match=r"lora\.rank = None, and was 2"):
        require_same_run({**run_identity(lora), "weights.student": "f"}, full)
    require_same_run({**run_identity(lora), "weights.student": "f"}, lora)


def test_a_field_that_the_runs_version_did_not_have_counts_as_its_default(tmp_path: Path) -> None:
    config = parse_config(spec(tmp_path, mode="opd", loss={"divergence": "forward_kl"}))
    older = {name: value for name, value in run_identity(config).items() if not name.startswith(("loss.b", "prompts."))}
    assert len(older) < len(run_identity(config)) - 3
    require_same_run(older, config)
    for changes, named in (
        ({"loss": {"beta": 0.25}}, r"loss\.beta = 0\.25, and was 0\.5"),
        ({"prompts": {"solve": "{problem}!"}}, r"prompts\.solve = '{problem}!', and was None"),
    ):
        with pytest.raises(SpecError, match=named):
            require_same_run(older, parse_config(spec(tmp_path, mode="opd", **{"loss": {}, **changes})))


def test_a_large_file_is_identified_by_its_start_its_end_and_blocks_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_WHOLE_BYTES", 100), ("_BLOCK_BYTES", 10), ("_NUM_BLOCKS", 5)):
        monkeypatch.setattr(subject, name, value)
    path = tmp_path / "model.safetensors"
    content = bytes(1000)
    path.write_bytes(content)
    same = weights_fingerprint(tmp_path)
    for place, is_seen in ((0, True), (999, True), (500, True), (100, False)):
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        assert (weights_fingerprint(tmp_path) != same) is is_seen
    path.write_bytes(content + b"\0")
    assert weights_fingerprint(tmp_path) != same
