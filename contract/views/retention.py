"""What the retention policy removes."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from contract.views import OpenEnum, View


class RetainedKind(View):
    """One kind of records of jobs that are over, and what of it is due for removal now."""

    kind: OpenEnum[Literal["events", "metrics", "trajectories", "checkpoints"]]
    days: float | None
    """Days from the end of a job to the removal; null keeps them forever."""
    num_jobs: int
    """Jobs with records that are due, of all owners."""
    oldest_finished_at: datetime | None
    """When the first of these jobs ended."""
    num_measured_jobs: int
    """Number of these jobs, the oldest first, that the next two figures include: counting stops after some seconds."""
    num_rows: int
    num_bytes: int
    """Roughly: the files of checkpoints; of other records what the database stores, without its indexes."""


class RetentionView(View):
    """What a retention policy would remove now."""

    object: Literal["retention"] = "retention"
    kinds: list[RetainedKind]
