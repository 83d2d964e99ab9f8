"""``trd retention``: what the retention policy would remove; for admins."""

from __future__ import annotations

from typing import Annotated

import typer

from client import Client
from client._sync.client import RetentionDays
from client.cli.output import JsonFlag, moment, print_json, print_list, remark, size
from contract.views.retention import RetainedKind

Days = Annotated[int | None, typer.Option(min=1, max=36_500, help="Try this limit.", show_default=False)]


def retention(
    events_days: Days = None,
    metrics_days: Days = None,
    trajectories_days: Days = None,
    checkpoints_days: Days = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what the retention policy would remove now, or what other limits would. Removes nothing (admins)."""
    tried = {
        "events_days": events_days,
        "metrics_days": metrics_days,
        "trajectories_days": trajectories_days,
        "checkpoints_days": checkpoints_days,
    }
    days: RetentionDays = {name: value for name, value in tried.items() if value is not None}  # type: ignore[assignment]
    with Client() as trd:
        found = trd.retention(**days)
    if as_json:
        print_json(found)
        return
    print_list(found.kinds, ("kind", "days", "#jobs", "#rows", "#size", "oldest end"), _cells, as_json=False)
    if any(kind.num_measured_jobs < kind.num_jobs for kind in found.kinds):
        remark("a size with + is of the oldest jobs alone: counting all of them would take too long")


def _cells(kind: RetainedKind) -> tuple[str | None, ...]:
    if kind.days is None:
        return kind.kind, "kept forever", "", "", "", ""
    more = "+" if kind.num_measured_jobs < kind.num_jobs else ""
    figures = str(kind.num_jobs), f"{kind.num_rows}{more}", f"{size(kind.num_bytes)}{more}"
    return kind.kind, f"{kind.days:g}", *figures, moment(kind.oldest_finished_at)
