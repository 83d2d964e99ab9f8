"""Checkpoints' folders, and what a crash leaves of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.trd_engine.tiny_runs import MODELS
from trd_engine.config import LoraConfig
from trd_engine.models.loading import load_model
from trd_engine.models.lora import add_adapter
from trd_engine.runtime.distributed import ALONE
from trd_engine.training.checkpoints.checkpoint import (
    begin_checkpoint,
    checkpoint_draft,
    checkpoint_folder,
    commit_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    write_weights,
)
from trd_engine.training.checkpoints.manifest import verify_manifest


class Killed(BaseException):
    """The process's end, at a place of the test's choice."""


def write(out: Path, step: int, content: str = "weights") -> Path:
    """Write a checkpoint of two files."""
    draft = checkpoint_draft(out, step)
    begin_checkpoint(draft)
    for name in ("a", "b"):
        (draft / name).write_text(content, encoding="utf-8")
    return commit_checkpoint(draft, out, step)


def kill_in_deletion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete half of a folder, and no more."""

    def half(folder: Path, **_: object) -> None:
        if folder.exists():
            (folder / "a").unlink()
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", half)


def test_a_kill_while_a_checkpoint_is_replaced_leaves_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, "old")
    with monkeypatch.context() as patch:
        kill_in_deletion(patch)
        with pytest.raises(Killed):
            write(tmp_path, 1, "new")
    newest = newest_checkpoint(tmp_path)
    assert newest == checkpoint_folder(tmp_path, 1)
    verify_manifest(newest)
    assert (newest / "a").read_text(encoding="utf-8") == "new"
    write(tmp_path, 2)
    assert sorted(path.name for path in newest.parent.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_kill_between_the_two_names_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    folder, rename = write(tmp_path, 1, "old"), Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path == checkpoint_draft(tmp_path, 1):
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            write(tmp_path, 1, "new")
    if goes_on:
        write(tmp_path, 0)
    assert newest_checkpoint(tmp_path) == folder
    verify_manifest(folder)


def test_a_kill_while_old_ones_are_deleted_leaves_none_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    with monkeypatch.context() as patch:
        kill_in_deletion(patch)
        with pytest.raises(Killed):
            prune_checkpoints(tmp_path, 1)
    assert not checkpoint_folder(tmp_path, 1).exists()
    write(tmp_path, 3)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000002", "step-00000003"}


def test_one_that_lacks_a_file_gives_way_to_the_one_before(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    (second / "a").unlink()
    assert newest_checkpoint(tmp_path) == first
    (first / "b").write_text("short", encoding="utf-8")
    assert newest_checkpoint(tmp_path) == second  # none is whole: what it lacks is said on resume


def test_an_adapters_settings_are_written_in_the_same_order_by_every_process(tmp_path: Path) -> None:
    """A resumed run's files are those of an uninterrupted run, checksums included."""
    folder = str(MODELS / "tiny-student")
    base = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    model = add_adapter(base, LoraConfig(rank=2, alpha=4), seed=0)
    write_weights(tmp_path, model, ALONE, dtype=None, merged=False)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    in_order = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert settings["target_modules"] == in_order
