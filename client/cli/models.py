"""``trd models``, ``trd status`` and ``trd retention``: available models, the state of the service, and what its
retention policy would remove."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from client import Client
from client.cli.exit_codes import FAILED
from client.cli.output import JsonFlag, answers, facts, moment, plain, print_json, print_list, remark, size
from contract.views.health import WorkerHealth
from contract.views.retention import RetainedKind


def models(as_json: JsonFlag = False) -> None:
    """List the models that a job may name as student or teacher."""
    with Client() as trd:
        found = trd.models.list()
    print_list(
        found,
        ("model", "from", "#context", "#vocabulary", ""),
        lambda model: (
            model.id,
            "a folder of the service" if model.is_local else f"hub {model.revision or ''}".strip(),
            *("—" if count is None else str(count) for count in (model.context_tokens, model.vocabulary_tokens)),
            Text(model.refusal or "", style="red"),
        ),
        as_json=as_json,
    )


def _devices(worker: WorkerHealth) -> str:
    count = f"{worker.num_devices} × " if worker.num_devices is not None else ""
    memory = f" with {size(worker.device_bytes)}" if worker.device_bytes is not None else ""
    return f"{count}{worker.device_kind or 'device unknown'}{memory}"


def status(as_json: JsonFlag = False) -> None:
    """Show whether the service can serve requests, and the state of each part. Exit code 1 if it cannot."""
    with Client() as trd:
        url, has_key = trd.settings.url, trd.settings.api_key is not None
        ready = trd.readiness()
        if has_key and ready.is_ready:
            trd.jobs.page(limit=1)  # raises if the key is unknown
    if as_json:
        print_json({"url": url, "has_key": has_key, **plain(ready)})
    else:
        key = "accepted" if has_key and ready.is_ready else "not tried" if has_key else "none: set TRD_API_KEY"
        parts = {name: str(value) for name, value in plain(ready).items() if name not in ("workers", "slow")}
        rows = [("url", url), ("key", key), *parts.items(), ("slow", ", ".join(ready.slow))]
        for worker in ready.workers:
            checks = "its machine is not checked" if worker.num_passed is None else f"{worker.num_passed} checks passed"
            rows.append(("worker", f"{worker.name}, {_devices(worker)}, {checks}"))
            rows += [("  failed", f"{one.check}: {one.message}; {one.remedy}") for one in worker.failures]
        answers().print(facts(rows))
    if not ready.is_ready:
        raise typer.Exit(FAILED)


Days = Annotated[int | None, typer.Option(min=1, max=36_500, help="Try this limit.", show_default=False)]


def retention(
    events_days: Days = None,
    metrics_days: Days = None,
    trajectories_days: Days = None,
    checkpoints_days: Days = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what the retention policy would remove now, or what other limits would. Removes nothing (admins)."""
    with Client() as trd:
        found = trd.retention(
            events_days=events_days,
            metrics_days=metrics_days,
            trajectories_days=trajectories_days,
            checkpoints_days=checkpoints_days,
        )
    if as_json:
        print_json(found)
        return
    print_list(found.kinds, ("kind", "days", "#jobs", "#rows", "#size", "oldest end"), _retained_cells, as_json=False)
    if any(kind.num_measured_jobs < kind.num_jobs for kind in found.kinds):
        remark("a size with + is of the oldest jobs alone: counting all of them would take too long")


def _retained_cells(kind: RetainedKind) -> tuple[str | None, ...]:
    if kind.days is None:
        return kind.kind, "kept forever", "", "", "", ""
    more = "+" if kind.num_measured_jobs < kind.num_jobs else ""
    figures = str(kind.num_jobs), f"{kind.num_rows}{more}", f"{size(kind.num_bytes)}{more}"
    return kind.kind, f"{kind.days:g}", *figures, moment(kind.oldest_finished_at)
