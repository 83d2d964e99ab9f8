"""Checkpoints: all that is needed to resume, and Hugging Face folders to serve from.

``checkpoints/step-NNNNNNNN/`` holds ``model/`` (a complete folder: full weights, or with LoRA the
merged ones, in the base's dtype), ``adapter/`` (PEFT, with LoRA), ``state/`` (what resuming needs besides) and, written
last, ``manifest.json``. A folder without a manifest that verifies is no checkpoint. No folder is
deleted or replaced under its own name: a crash in the middle leaves no part of one that looks whole.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from trd_data.templates import MODEL_PROMPTS_FILE
from trd_engine.config import RunConfig
from trd_engine.models.folders import ADAPTER_FOLDER, MANIFEST_FILE, MODEL_FOLDER
from trd_engine.models.fsdp import gather_full_model, merged_model, save_adapter
from trd_engine.models.loading import TrainedModel
from trd_engine.models.lora import STUDENT_ADAPTER
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import CheckpointCorruptError
from trd_engine.training.checkpoints.manifest import fsync, has_all_files, write_manifest
from trd_engine.training.checkpoints.model_card import PLOT_FILE, model_card, training_plot
from trd_engine.training.checkpoints.state import TrainingState

STATE_FOLDER = "state"
_DRAFT = ".writing-step-"
_REPLACED = ".replaced-step-"
"""One whose successor of the same step is about to take its name."""


def checkpoint_folder(out_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step`, whether it exists yet or not."""
    return out_dir / "checkpoints" / f"step-{step:08d}"


def checkpoint_draft(out_dir: Path, step: int) -> Path:
    """Return the folder in which the checkpoint of `step` is written; `commit_checkpoint` gives it its name."""
    return out_dir / "checkpoints" / f"{_DRAFT}{step:08d}"


def begin_checkpoint(draft: Path) -> None:
    """Make `draft` an empty folder, and remove those of processes that died while they wrote."""
    for stale in draft.parent.glob(f"{_DRAFT}*"):
        shutil.rmtree(stale)
    _put_back_replaced(draft.parent)
    for stale in draft.parent.glob(f"{_REPLACED}*"):
        shutil.rmtree(stale)
    draft.mkdir(parents=True)


def commit_checkpoint(temporary: Path, out_dir: Path, step: int, **facts: Any) -> Path:
    """Write the manifest and rename the folder: a crash before this leaves no checkpoint, never half a one."""
    write_manifest(temporary, step=step, **facts)
    folder = checkpoint_folder(out_dir, step)
    replaced = folder.parent / f"{_REPLACED}{step:08d}"
    if folder.exists():  # an earlier process's, or one with less in it
        folder.rename(replaced)
    temporary.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def write_weights(
    folder: Path, model: TrainedModel, world: World, *, dtype: torch.dtype | None, merged: bool
) -> list[str]:
    """Write the model's folders below `folder`; return their formats: full, or adapter and merged. Collective.

    `dtype` is that of a full or merged model; None: as it is in memory.
    """
    if not isinstance(model, PeftModel):
        whole = model if world.size == 1 and dtype is None else gather_full_model(model, world, dtype)
        if whole is not None:
            whole.save_pretrained(str(folder / MODEL_FOLDER))
        return ["full"]
    save_adapter(model, folder / ADAPTER_FOLDER, STUDENT_ADAPTER, world)
    if not merged:
        return ["adapter"]
    divided = model if world.size == 1 else gather_full_model(model, world)
    if isinstance(divided, PeftModel):
        merged_model(divided, dtype).save_pretrained(folder / MODEL_FOLDER)
    return ["adapter", "merged"]


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
        doomed = folder.with_name(f".writing-{folder.name}")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def newest_checkpoint(out_dir: Path) -> Path | None:
    """Return the newest checkpoint below a run's folder that has all its files.

    If none has, return the newest with a manifest: resuming from it reports what it lacks.
    """
    _put_back_replaced(out_dir / "checkpoints")
    found = sorted((path.parent for path in (out_dir / "checkpoints").glob(f"step-*/{MANIFEST_FILE}")), reverse=True)
    return next((folder for folder in found if has_all_files(folder)), found[0] if found else None)


def _put_back_replaced(folder: Path) -> None:
    """Give those their names again whose successor never took it."""
    for replaced in folder.glob(f"{_REPLACED}*"):
        own = folder / f"step-{replaced.name.removeprefix(_REPLACED)}"
        if not own.exists():
            with suppress(OSError):  # another process of the run was first
                replaced.rename(own)


def write_extras(
    draft: Path, config: RunConfig, state: TrainingState, num_steps: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write what goes beside the weights into each folder that is served from: tokenizer, card, plot, and the student's
    own templates, so that the trained student can be trained again."""
    plot = training_plot(state)
    card = model_card(config, state, num_steps=num_steps, has_plot=plot is not None)
    own_prompts = Path(config.student) / MODEL_PROMPTS_FILE
    for folder in filter(Path.is_dir, (draft / MODEL_FOLDER, draft / ADAPTER_FOLDER)):
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")
        if plot is not None:
            (folder / PLOT_FILE).write_bytes(plot)
        if own_prompts.is_file():
            shutil.copyfile(own_prompts, folder / MODEL_PROMPTS_FILE)
