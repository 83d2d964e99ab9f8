"""``trd watch``: follow a job: live in a terminal, as lines, as JSON for programs. ``trd logs``: its events."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from client import Client
from client.cli.exit_codes import INTERRUPTED
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.jobs import evaluation_table
from client.cli.live_view import LiveView, LossCurve, event_text
from client.cli.output import JsonFlag, answers, duration, notice_block, number, plain, print_json, remark
from client.events import StreamItem
from client.jobs import require_not_paused, require_succeeded
from contract.views.events import EventView
from contract.views.jobs import JobProgress, WouldWaitFor


def watch(job: JobArgument, as_json: JsonFlag = False) -> None:
    """Follow a job to its end. Ctrl-C leaves it running.

    Exit codes: 0 if it succeeded, 3 if it failed or was cancelled, 8 if it is paused.
    """
    with Client() as trd:
        follow(trd, job_id_of(trd, job), as_json=as_json)


def follow(trd: Client, job_id: str, *, as_json: bool) -> None:
    """Show the job until it is over, then its result; raises `JobFailedError` unless it succeeded.

    Raises `JobPausedError` as soon as it is paused.
    """
    try:
        missing = trd.jobs.get(job_id).would_wait_for
        if missing is not None:
            remark(wait_text(missing))
        if as_json:
            for item in _until_paused(trd.events.follow(job_id)):
                if isinstance(item, EventView):
                    print_json(item, is_line=True)
                elif isinstance(item, JobProgress):
                    print_json({"object": "job.progress", **plain(item)}, is_line=True)
                sys.stdout.flush()
        else:
            show_progress(trd, job_id)
        job = trd.jobs.get(job_id)
        if as_json:
            print_json(job, is_line=True)
        else:
            scores = trd.evaluations.list(job.id)
            if scores:
                answers().print(evaluation_table(scores))
            if trd.checkpoints.list(job.id):
                remark(f"download its newest checkpoint: trd download {job.id}, or chat with it: trd try {job.id}")
        require_succeeded(job)
    except KeyboardInterrupt:
        remark(f"the job continues; watch it again with: trd watch {job_id}")
        raise typer.Exit(INTERRUPTED) from None


def wait_text(missing: WouldWaitFor) -> str:
    """Return why a job would wait, or waits, for more than its turn."""
    return f"{missing.message}: a job waits until a worker comes that can run it"


def _until_paused(items: Iterator[StreamItem]) -> Iterator[StreamItem]:
    """Yield items, and raise `JobPausedError` when the job is paused: it does nothing until it is resumed."""
    for item in items:
        yield item
        if isinstance(item, JobProgress):
            require_not_paused(item, hint=f"trd resume {item.id}, then trd watch {item.id}")


def show_progress(trd: Client, job_id: str) -> None:
    """Show the job until it is over: live in a terminal, otherwise as lines."""
    items = _until_paused(trd.events.follow(job_id))
    job = trd.jobs.get(job_id)
    if job.notices:
        answers().print(notice_block(job.notices))
    if answers().is_terminal:
        view = LiveView(job, LossCurve(trd, job.id))
        with Live(view, console=answers(), refresh_per_second=5, transient=True) as live:
            for item in items:
                if isinstance(item, EventView) and item.type != "phase":
                    live.console.print(event_text(item))
                view.take(item)
    else:
        _print_lines(items)


def _print_lines(items: Iterator[StreamItem]) -> None:
    """Print one line for each event, and one for each step."""
    console, last_step = answers(), 0
    for item in items:
        if isinstance(item, EventView):
            console.print(event_text(item), soft_wrap=True)
        elif isinstance(item, JobProgress) and item.step > last_step:
            last_step = item.step
            parts = [f"step {item.step} of {item.num_steps or '?'}"]
            if "loss" in item.latest_metrics:
                parts.append(f"loss {number(item.latest_metrics['loss'])}")
            if item.eta_seconds is not None:
                parts.append(f"about {duration(item.eta_seconds)} left")
            console.print(Text("          " + ", ".join(parts)), soft_wrap=True)


class Level(StrEnum):
    """Severity of an event."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job is over.")] = False,
    level: Annotated[Level, typer.Option(help="Minimum severity.")] = Level.INFO,
    tail: Annotated[int | None, typer.Option(min=1, help="Only the last N events.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a job's events. With --json and --follow, one JSON object per line."""
    levels = list(Level)[list(Level).index(level) :]
    with Client() as trd:
        job_id = job_id_of(trd, job)
        stored = list(trd.events.list(job_id))
        past = deque((event for event in stored if event.level in levels), maxlen=tail)
        if as_json and not follow:
            print_json(list(past))
            return
        if stored and stored[0].sequence > 1:  # they are numbered without a gap
            remark(f"the events before number {stored[0].sequence} were removed by the service's retention policy")
        for event in past:
            _print_event(event, as_json)
        if follow:
            newest = past[-1].sequence if past else 0
            try:
                for item in trd.events.follow(job_id, after=newest):
                    if isinstance(item, EventView) and item.level in levels:
                        _print_event(item, as_json)
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None


def _print_event(event: EventView, as_json: bool) -> None:
    if as_json:
        print_json(event, is_line=True)
        sys.stdout.flush()
        return
    answers().print(event_text(event), soft_wrap=True)
    traceback = event.data.get("traceback") or event.data.get("log")
    if isinstance(traceback, str):
        answers().print(traceback, markup=False, style="dim", soft_wrap=True)
