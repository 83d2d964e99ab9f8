"""``trd logs``: the events of a job."""

from __future__ import annotations

import sys
from collections import deque
from enum import StrEnum
from typing import Annotated

import typer

from client import Client
from client.cli.exit_codes import INTERRUPTED
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.live_view import event_text
from client.cli.output import JsonFlag, answers, print_json, remark
from contract.views.events import EventView


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
            _print(event, as_json)
        if follow:
            newest = past[-1].sequence if past else 0
            try:
                for item in trd.events.follow(job_id, after=newest):
                    if isinstance(item, EventView) and item.level in levels:
                        _print(item, as_json)
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None


def _print(event: EventView, as_json: bool) -> None:
    if as_json:
        print_json(event, is_line=True)
        sys.stdout.flush()
        return
    answers().print(event_text(event), soft_wrap=True)
    traceback = event.data.get("traceback") or event.data.get("log")
    if isinstance(traceback, str):
        answers().print(traceback, markup=False, style="dim", soft_wrap=True)
