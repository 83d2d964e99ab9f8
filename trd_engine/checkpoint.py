"""Checkpoints: all that is needed to resume, and Hugging Face folders to serve from.

``checkpoints/step-NNNNNNNN/`` holds ``model/`` (a folder of its own: full weights, or with LoRA the
merged ones), ``adapter/`` (PEFT, with LoRA), ``state/`` (what resuming needs besides) and, written
last, ``manifest.json``. A folder without a manifest that verifies is no checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from trd_engine.errors import CheckpointCorruptError
from trd_engine.lora import STUDENT_ADAPTER, merged_state_dict
from trd_engine.manifest import MANIFEST_FILE, write_manifest
from trd_engine.models import TrainedModel, causal_lm_of
from trd_engine.prompts import MODEL_PROMPTS_FILE

STATE_FOLDER = "state"
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
_DRAFT = ".writing-step-"


@dataclass(frozen=True)
class ExportExtras:
    """What goes beside the weights into each folder that is served from."""

    tokenizer: PreTrainedTokenizerBase
    card: str
    prompts_file: Path | None
    """The student's own templates, so that the trained student can be trained again."""


def checkpoint_folder(out_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or will be."""
    return out_dir / "checkpoints" / f"step-{step:08d}"


def checkpoint_draft(out_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written; `commit_checkpoint` gives it its name."""
    return out_dir / "checkpoints" / f"{_DRAFT}{step:08d}"


def begin_checkpoint(draft: Path) -> None:
    """Make `draft` an empty folder, and remove those of processes that died while they wrote."""
    for stale in draft.parent.glob(f"{_DRAFT}*"):
        shutil.rmtree(stale)
    draft.mkdir(parents=True)


def commit_checkpoint(temporary: Path, out_dir: Path, step: int, **facts: Any) -> Path:
    """Write the manifest and rename the folder: a crash before this leaves no checkpoint, never half a one."""
    write_manifest(temporary, step=step, **facts)
    folder = checkpoint_folder(out_dir, step)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier process that died after renaming it
    temporary.rename(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return folder


def write_weights(folder: Path, model: TrainedModel, extras: ExportExtras, *, merged: bool) -> list[str]:
    """Write the model's folders below `folder`; returns their formats: full, or adapter and merged."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder / MODEL_FOLDER)
        _write_extras(folder / MODEL_FOLDER, extras)
        return ["full"]
    model.save_pretrained(str(folder / ADAPTER_FOLDER), selected_adapters=[STUDENT_ADAPTER])
    _write_extras(folder / ADAPTER_FOLDER, extras)
    if not merged:
        return ["adapter"]
    causal_lm_of(model).save_pretrained(folder / MODEL_FOLDER, state_dict=merged_state_dict(model))
    _write_extras(folder / MODEL_FOLDER, extras)
    return ["adapter", "merged"]


def write_sampler_weights(folder: Path, model: TrainedModel, adapter: str = STUDENT_ADAPTER) -> None:
    """Just the weights, for a generator to load: one adapter, or the whole model."""
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), selected_adapters=[adapter])
    else:
        model.save_pretrained(folder)


def sampler_weights_folder(folder: Path, model: TrainedModel, adapter: str = STUDENT_ADAPTER) -> Path:
    """Where in `folder` they are: PEFT gives all adapters but the first a folder of their own."""
    return folder / adapter if isinstance(model, PeftModel) and adapter != STUDENT_ADAPTER else folder


def restore_adapter(folder: Path, model: PeftModel) -> None:
    """Put a checkpoint's adapter into the live model."""
    weights = load_file(folder / ADAPTER_FOLDER / "adapter_model.safetensors")
    unexpected: list[str] = set_peft_model_state_dict(model, weights).unexpected_keys  # type: ignore[attr-defined]
    if unexpected:
        raise CheckpointCorruptError(f"the adapter has layers that the student has not: {unexpected[:3]}")


def prune_checkpoints(out_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of this folder."""
    complete = sorted(path.parent for path in (out_dir / "checkpoints").glob(f"step-*/{MANIFEST_FILE}"))
    for folder in complete[:-keep]:
        shutil.rmtree(folder)


def newest_checkpoint(out_dir: Path) -> Path | None:
    """The newest complete checkpoint below a run's folder."""
    complete: Sequence[Path] = sorted((out_dir / "checkpoints").glob(f"step-*/{MANIFEST_FILE}"))
    return complete[-1].parent if complete else None


def _write_extras(folder: Path, extras: ExportExtras) -> None:
    extras.tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text(extras.card, encoding="utf-8")
    if extras.prompts_file is not None:
        shutil.copyfile(extras.prompts_file, folder / MODEL_PROMPTS_FILE)
