"""``trd jobs``, ``show``, ``cancel``, ``pause``, ``resume``, ``delete``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from client import Client
from client.cli.exit_codes import MisusedError
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import (
    JsonFlag,
    LimitOption,
    age,
    answers,
    duration,
    facts,
    moment,
    notice_block,
    number,
    percent,
    plain,
    print_json,
    print_list,
    print_result,
    size,
    status_text,
    table,
)
from client.jobs import JobFilter
from contract.job_spec import Mode
from contract.job_state import JobStatus
from contract.views.jobs import JobView
from contract.views.runs import EvaluationView

DAYS = ["%Y-%m-%d"]


def list_jobs(
    *,
    status: Annotated[list[JobStatus] | None, typer.Option(help="Only these; may be repeated.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="Only this mode.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this in their name.")] = None,
    since: Annotated[datetime | None, typer.Option(formats=DAYS, help="Only jobs made from this day on.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=DAYS, help="Only jobs made up to this day.")] = None,
    limit: LimitOption = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    after = _midnight(since) if since is not None else None
    before = _midnight(until, days_later=1) if until is not None else None
    wanted = JobFilter(status or (), mode, tag, name, created_after=after, created_before=before)
    with Client() as trd:
        found = list(trd.jobs.list(wanted, num_wanted=limit))
    print_list(
        found,
        ("job", "name", "mode", "status", "#step", "loss", "created"),
        lambda job: (
            *(job.id, Text(job.name or ""), job.mode, _status(job), _step(job)),
            *(number(job.latest_metrics.get("loss")), age(job.created_at)),
        ),
        as_json=as_json,
        if_empty="no jobs; `trd submit SPEC` submits one",
    )


def _midnight(day: datetime, *, days_later: int = 0) -> datetime:
    """Return the first moment of a day in the user's time zone."""
    try:
        return (day + timedelta(days=days_later)).astimezone()
    except (OverflowError, ValueError):
        raise MisusedError(f"{day.date()}: is too far away", hint="leave the option out to set no limit") from None


def _status(job: JobView) -> Text:
    text = status_text(job.status)
    if job.queue_position is not None:
        text.append(f" (number {job.queue_position})", style="dim")
    elif job.phase is not None:
        text.append(f" {job.phase}", style="dim")
    return text


def _step(job: JobView) -> str:
    return f"{job.step}/{job.num_steps}" if job.num_steps is not None else "—"


def show(
    job: JobArgument,
    spec: Annotated[bool, typer.Option("--spec", help="Also show the spec with every default resolved.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a job: its state, scores and checkpoints."""
    with Client() as trd:
        found = trd.jobs.get(job_id_of(trd, job))
        scores = trd.evaluations.list(found.id)
        checkpoints = trd.checkpoints.list(found.id)
    if as_json:
        lists = {"evaluations": [plain(row) for row in scores], "checkpoints": [plain(row) for row in checkpoints]}
        print_json({**plain(found), **lists})
        return
    console = answers()
    if found.notices:
        console.print(notice_block(found.notices))
        console.print()
    console.print(facts(_job_facts(found)))
    if scores:
        console.print()
        console.print(evaluation_table(scores))
    if checkpoints:
        console.print()
        rows = table("#step", "formats", "#size", "stored", title="Checkpoints")
        for row in checkpoints:
            rows.add_row(str(row.step), ", ".join(row.formats), size(row.num_bytes), moment(row.created_at))
        console.print(rows)
    if spec:
        console.print()
        console.print_json(json.dumps(found.spec))


def _job_facts(job: JobView) -> list[tuple[str, str | Text | None]]:
    error = job.error
    progress = f"{job.phase_done} of {job.phase_total}" if job.phase_total else None
    return [
        ("job", job.id),
        ("name", job.name),
        ("status", _status(job)),
        ("error", f"{error.code}: {error.message}" if error is not None else None),
        ("hint", error.hint if error is not None else None),
        ("mode", f"{job.mode}, preset {job.spec.get('preset')}"),
        ("student", str(job.spec["student"])),
        ("teacher", str(job.spec.get("teacher") or "the student's own step-0 weights, shown the solution")),
        ("phase", f"{job.phase} {progress or ''}".strip() if job.phase is not None else None),
        ("step", _step(job)),
        ("round", f"{job.round + 1} of {job.num_rounds}" if job.round is not None and job.num_rounds else None),
        ("left", f"about {duration(job.eta_seconds)}" if job.eta_seconds is not None else None),
        ("loss", number(job.latest_metrics["loss"]) if "loss" in job.latest_metrics else None),
        ("attempt", str(job.attempt) if job.attempt else None),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("starts", _expected(job.expected_start_at, job.expected_note)),
        ("finishes", _expected(job.expected_finish_at, job.expected_note) if job.expected_start_at else None),
        ("created", moment(job.created_at)),
        ("started", moment(job.started_at)),
        ("finished", moment(job.finished_at)),
        ("took", took(job)),
        ("cloned from", job.cloned_from),
        ("tags", ", ".join(job.tags)),
        ("metadata", ", ".join(f"{key}={value}" for key, value in job.metadata.items())),
    ]


def took(job: JobView) -> str | None:
    """Format the time from a job's first start to its end; None if it has not ended."""
    if job.started_at is None or job.finished_at is None:
        return None
    return duration((job.finished_at - job.started_at).total_seconds())


def _expected(at: datetime | None, note: str | None) -> str | None:
    if at is not None:
        return f"about {moment(at)}"
    return f"not known: {note}" if note is not None else None


def evaluation_table(scores: Sequence[EvaluationView]) -> Table:
    """Return a table of scores with their 95 % intervals."""
    rows = table("#step", "problems", "#avg@k", "95 %", "#pass@k", "95 %", title="Evaluations")
    for row in scores:
        rows.add_row(
            str(row.step),
            f"{row.dataset} ({row.num_problems}), k = {row.k}",
            percent(row.avg_at_k),
            f"{100 * row.avg_low:.1f} … {100 * row.avg_high:.1f}",
            percent(row.pass_at_k),
            f"{100 * row.pass_low:.1f} … {100 * row.pass_high:.1f}",
        )
    return rows


def cancel(job: JobArgument, as_json: JsonFlag = False) -> None:
    """Cancel a job; a running one stops at its next step boundary."""
    with Client() as trd:
        _print_status(trd.jobs.cancel(job_id_of(trd, job)), as_json)


def pause(job: JobArgument, as_json: JsonFlag = False) -> None:
    """Pause a job; a running one writes a checkpoint and frees its device."""
    with Client() as trd:
        _print_status(trd.jobs.pause(job_id_of(trd, job)), as_json)


def resume(job: JobArgument, as_json: JsonFlag = False) -> None:
    """Resume a paused, failed or cancelled job; it continues from its last checkpoint."""
    with Client() as trd:
        _print_status(trd.jobs.resume(job_id_of(trd, job)), as_json)


def _print_status(job: JobView, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        answers().print(Text(f"{job.id} is ").append_text(status_text(job.status)))


def delete(
    job: JobArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete a finished job with its metrics, trajectories and checkpoints."""
    with Client() as trd:
        job_id = job_id_of(trd, job)
        if not yes and not as_json:
            typer.confirm(f"delete {job_id} and everything it made?", abort=True)
        done = trd.jobs.delete(job_id)
    print_result(done, f"{done.id} is deleted", as_json)
