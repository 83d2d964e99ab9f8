"""How a checkpoint becomes a view."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from contract.tables import Checkpoint, CheckpointFile
from contract.views.checkpoints import CheckpointFileView, ManifestView


def manifest_view(row: Checkpoint, files: Sequence[CheckpointFile]) -> ManifestView:
    """Return the view of a checkpoint with its files."""
    base = f"/jobs/{row.job_id}/checkpoints/{row.step}"
    views = [CheckpointFileView.of(file, url=f"{base}/files/{quote(file.name)}") for file in files]
    return ManifestView.of(row, files=views, archive_url=f"{base}/archive")
