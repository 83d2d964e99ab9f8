"""A checkpoint's model has the base's dtype; what a resumed run continues from has the trained one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trd_engine.tiny_runs import MODELS, spec, until, write_data
from trd_engine.config import parse_config
from trd_engine.models.loading import load_model
from trd_engine.training import loop
from trd_engine.training.checkpoints import checkpoint
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.loop import distil
from trd_engine.training.session import Session

SHORT: dict[str, Any] = {
    "mode": "opd",
    "loss": {},
    "evaluation": {"holdout": 0.0},
    "diagnosis": {"num_trajectories": 0},
    "checkpoints": {"every_steps": 1, "keep": 9},
    "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 8},
}
STUDENT = "tiny-student-loops"  # stored in bf16


def run(tmp_path: Path, name: str, resume_from: Path | None = None, **changes: Any) -> Path:
    data = write_data(tmp_path / "data", train=32)
    document = spec(data, **{"student": str(MODELS / STUDENT), **SHORT, **changes})
    distil(parse_config(document), tmp_path / name, resume_from=resume_from)
    return tmp_path / name


def test_a_full_model_is_exported_in_bf16_and_trained_on_in_fp32(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole")
    last = checkpoint_folder(whole, 2)
    exported = load_file(last / "model" / "model.safetensors")
    exact = load_file(last / "state" / "student.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert exported.keys() == exact.keys()
    assert all(torch.equal(exported[name], exact[name].bfloat16()) for name in exact)
    assert any(not torch.equal(exported[name].float(), exact[name]) for name in exact)
    assert json.loads((last / "model" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    load_model(str(last / "model"), dtype=torch.float32, device=torch.device("cpu"))
    resumed = checkpoint_folder(run(tmp_path, "resumed", checkpoint_folder(whole, 1)), 2)
    for name in ("model/model.safetensors", "state/student.safetensors", "state/optimizer.safetensors"):
        assert (resumed / name).read_bytes() == (last / name).read_bytes()
    # The round's trajectories are written once: both checkpoints, and the file for users, are links to one file.
    first, second = (checkpoint_folder(whole, step) / "state" / "trajectories.jsonl" for step in (0, 1))
    assert second.samefile(first)
    assert first.samefile(whole / "rounds" / "0000" / "trajectories.jsonl")
    assert not (whole / "rounds" / "0000" / "state").exists()


def held_bytes(session: Session) -> int:
    """Return the bytes of weights and moments."""
    tensors = list(session.models.student.parameters())
    tensors += [value for moments in session.optimizer.state.values() for value in moments.values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_a_merged_model_is_exported_in_bf16_and_hashed_while_devices_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, hashed = list[Session](), list[int]()
    open_session, write_manifest = loop.open_session, checkpoint.write_manifest

    def kept(*arguments: Any, **options: Any) -> Session:
        opened.append(open_session(*arguments, **options))
        assert held_bytes(opened[-1]) > 10**5
        return opened[-1]

    def seen(folder: Path, **facts: Any) -> dict[str, Any]:
        (session,) = opened
        if facts["step"] == 2:  # the run continues while those before are hashed
            until(lambda: held_bytes(session) == 0)
            hashed.append(2)
        return write_manifest(folder, **facts)

    monkeypatch.setattr(loop, "open_session", kept)
    monkeypatch.setattr(checkpoint, "write_manifest", seen)
    last = checkpoint_folder(run(tmp_path, "lora", lora={"rank": 4, "alpha": 8}), 2)
    assert hashed == [2]
    exported = load_file(last / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert json.loads((last / "model" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    base = load_file(MODELS / STUDENT / "model.safetensors")
    assert exported.keys() == base.keys()
    assert any(not torch.equal(exported[name], base[name]) for name in base)
    assert not (last / "state" / "student.safetensors").exists()


def test_a_model_that_is_stored_in_fp32_is_written_once(tmp_path: Path) -> None:
    last = checkpoint_folder(run(tmp_path, "run", student=str(MODELS / "tiny-student")), 1)
    assert {t.dtype for t in load_file(last / "model" / "model.safetensors").values()} == {torch.float32}
    assert not (last / "state" / "student.safetensors").exists()
