"""``trd download``: download a checkpoint in parallel, verified, and continue an interrupted download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client import Client
from client.cli.exit_codes import INTERRUPTED
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import JsonFlag, byte_bar, print_json, remark, say, size
from client.downloads import LATEST, NUM_PARALLEL, Download
from contract.views.checkpoints import ManifestView

SERVED_FOLDERS = ("model", "adapter")
"""Folders from which a model can be loaded, in order of preference."""


def download(
    job: JobArgument,
    step: Annotated[str, typer.Option(help="Which checkpoint: a step, or 'latest'.")] = LATEST,
    folder: Annotated[
        str | None,
        typer.Option(help="Which folder: model, adapter or state; by default model, or adapter if there is no model."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All folders, including the training state.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Target folder; by default ./JOB-step-N.")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Files to download at once.")] = NUM_PARALLEL,
    as_json: JsonFlag = False,
) -> None:
    """Download a checkpoint. Repeat the command to continue an interrupted download.

    Files of the same name are replaced, others stay. A folder that would then mix two models is refused.
    """
    with Client() as trd:
        manifest = trd.checkpoints.manifest(job_id_of(trd, job), step)
        if not everything and folder is None:
            folder = served_folder(manifest)
        target = out if out is not None else Path(f"{manifest.job_id}-step-{manifest.step}")
        done = fetch(trd, manifest, target, None if everything else folder, parallel=parallel, is_quiet=as_json)
    if as_json:
        document = {"job_id": manifest.job_id, "step": done.step, "folder": str(done.folder)}
        files = [str(path) for path in done.files]
        print_json({"object": "download", **document, "num_bytes": done.num_bytes, "files": files})
        return
    say(str(done.folder))
    remark(f"{len(done.files)} files, {size(done.num_bytes)}; every sha256 matches the manifest")


def served_folder(manifest: ManifestView) -> str | None:
    """Return the folder from which the model can be loaded; None if there is none."""
    there = {file.name.partition("/")[0] for file in manifest.files}
    return next((name for name in SERVED_FOLDERS if name in there), None)


def fetch(
    trd: Client,
    manifest: ManifestView,
    target: Path,
    folder: str | None,
    *,
    parallel: int = NUM_PARALLEL,
    is_quiet: bool = False,
) -> Download:
    """Download with a progress bar; after Ctrl-C the next download continues."""
    prefix = f"{folder}/" if folder is not None else ""
    total = sum(file.num_bytes for file in manifest.files if file.name.startswith(prefix))
    try:
        with byte_bar(f"step {manifest.step}", total, is_quiet=is_quiet) as on_bytes:
            return trd.checkpoints.download(manifest, target, folder=folder, num_parallel=parallel, on_bytes=on_bytes)
    except KeyboardInterrupt:
        remark("stopped; repeat the command to continue")
        raise typer.Exit(INTERRUPTED) from None
