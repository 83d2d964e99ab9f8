"""``trd submit`` and ``trd clone``: new jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from client import Client
from client.cli.datasets import upload_file
from client.cli.exit_codes import NothingThereError
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import (
    JsonFlag,
    answers,
    duration,
    facts,
    notice_block,
    percent,
    print_json,
    remark,
    remarks,
    say,
    size,
    table,
)
from client.cli.spec_file import flattened, merged, parse_overrides, read_spec
from client.cli.watch import follow, wait_text
from contract.ids import DATASET_PREFIX
from contract.views.jobs import DryRunView, JobView

SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY.PATH=VALUE", help="Set a field; may be repeated.")
]
WatchFlag = Annotated[bool, typer.Option("--watch", "-w", help="Follow the job to its end.")]
KeyOption = Annotated[str | None, typer.Option(help="Repeating a submission with the same key creates only one job.")]


def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML or JSON file; '-' reads the standard input.")],
    dataset: Annotated[
        str | None, typer.Option(help="Id of a dataset, or a file to upload first.", show_default=False)
    ] = None,
    settings: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, resolve and estimate; create no job.")] = False,
    watch: WatchFlag = False,
    idempotency_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job.

    Exit codes with --watch: 0 if the job succeeded, 3 if it failed or was cancelled, 8 if it is paused.
    """
    document = merged(read_spec(spec), parse_overrides(settings or []))
    with Client() as trd:
        if dataset is not None:
            document["dataset"] = _dataset_id(trd, dataset, is_quiet=as_json)
        if dry_run:
            _show_dry_run(trd.jobs.dry_run(document), as_json)
            if not as_json and document.get("dataset") != dataset:
                remark(f"{dataset} is uploaded; next time use --dataset {document['dataset']}")
            return
        job = trd.jobs.create(document, idempotency_key=idempotency_key)
        _report(trd, job, watch, as_json)


def clone(
    job: JobArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Fields to change.", show_default=False),
    ] = None,
    watch: WatchFlag = False,
    idempotency_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit a copy of a job with changes: trd clone JOB optim.learning_rate=1e-4 name=slower"""
    changes = parse_overrides(overrides or [])
    with Client() as trd:
        made = trd.jobs.clone(job_id_of(trd, job), changes, idempotency_key=idempotency_key)
        _report(trd, made, watch, as_json)


def _dataset_id(trd: Client, dataset: str, *, is_quiet: bool) -> str:
    if Path(dataset).is_file():
        return upload_file(trd, Path(dataset), is_quiet=is_quiet).id
    if not dataset.startswith(DATASET_PREFIX):
        raise NothingThereError(f"--dataset {dataset}: is neither a file nor the id of a dataset")
    return dataset


def _report(trd: Client, job: JobView, watch: bool, as_json: bool) -> None:
    if watch:
        follow(trd, job.id, as_json=as_json)
        return
    if job.would_wait_for is not None:
        remark(wait_text(job.would_wait_for))
    if as_json:
        print_json(job)
    else:
        say(job.id)
        if job.notices:
            remarks().print(notice_block(job.notices))
        position = f", number {job.queue_position} in the queue" if job.queue_position is not None else ""
        remark(f"{job.status}{position}; follow it with: trd watch {job.id}")


def _show_dry_run(preview: DryRunView, as_json: bool) -> None:
    if as_json:
        print_json(preview)
        return
    console = answers()
    if preview.notices:
        console.print(notice_block(preview.notices))
        console.print()
    console.print(facts((path, _shown(value)) for path, value in flattened(preview.spec).items()))
    console.print()
    if preview.estimate is None:
        console.print("the number of problems is known only once the job runs: no estimate")
    else:
        counts = flattened(preview.estimate.model_dump()).items()
        console.print(facts((name.replace("_", " "), _shown(value)) for name, value in counts))
    console.print()
    console.print(_phases(preview))
    console.print(facts(_forecast(preview)))
    for note in preview.estimate_notes:
        console.print(Text(note, style="dim"))
    if preview.would_wait_for is not None:
        console.print(wait_text(preview.would_wait_for), style="yellow")
    console.print("this was a dry run: no job was created", style="dim")


def _phases(preview: DryRunView) -> Table:
    """Return a row for each phase in readable units."""
    rows = table("phase", "#tokens", "#device", "#host", "#disk", "#time", "on a device")
    for one in preview.phases:
        owners = sorted(((num, name) for name, num in one.device_bytes.items() if num), reverse=True)
        listed = ", ".join(f"{name.replace('_', ' ')} {size(num)}" for num, name in owners)
        tokens = _shown(one.num_tokens) if one.num_tokens else "—"
        sizes = [size(number) if number else "—" for number in (one.total_bytes, one.host_bytes, one.disk_bytes)]
        rows.add_row(one.phase, tokens, *sizes, duration(one.seconds) if one.seconds is not None else "—", listed)
    return rows


def _forecast(preview: DryRunView) -> Iterator[tuple[str, str]]:
    """Yield the sums of memory and time in readable units."""
    if (memory := preview.memory) is not None:
        capacity = f" of {size(memory.device_bytes)}" if memory.device_bytes is not None else ""
        yield "device", memory.device
        yield "memory of a device", f"{size(memory.peak_bytes)}{capacity}, while {memory.peak_phase}"
        yield "memory of the host", size(memory.host_bytes)
        yield "disk", size(memory.disk_bytes)
    if (time := preview.duration) is not None:
        like = "a similar job" if time.num_like_jobs == 1 else f"{time.num_like_jobs} similar jobs"
        sources = {
            "history": f"as {like} took",
            "peak_figures": "by the device's data sheet and expected lengths, not measured",
            "calibration": "at most, by calibration on a CPU",
        }
        yield "time", f"{duration(time.seconds)} ({sources.get(time.time_source, time.time_source)})"
        if time.evaluation_share is not None:
            yield "share of evaluation", percent(time.evaluation_share)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
