"""A running job in a terminal: phases, progress bars, the remaining time, the loss curve."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from client import Client, TrdError
from client.cli.chart import sparkline
from client.cli.output import duration, number, printable, status_text
from client.events import StreamItem
from contract.job_state import Phase
from contract.views.events import EventView, StreamEnd
from contract.views.jobs import JobProgress, JobView

BAR_WIDTH = 32
REFRESH_SECONDS = 1.0

_LEVEL_STYLES = {"warn": "yellow", "error": "bold red"}


def event_text(event: EventView) -> Text:
    """Return an event as a line of a log."""
    text = Text(event.created_at.astimezone().strftime("%H:%M:%S  "), style="dim")
    text.append(printable(event.message), style=_LEVEL_STYLES.get(event.level, "default"))
    if event.type == "notice" and event.level == "warn" and event.data.get("remedy"):
        text.append(f"\n          what to do: {printable(str(event.data['remedy']))}", style="dim")
    return text


class LossCurve:
    """The loss over the whole run, read again as the run advances."""

    def __init__(self, trd: Client, job_id: str) -> None:
        self._trd = trd
        self._job_id = job_id
        self._step = 0
        self._asked_at = 0.0
        self.values: Sequence[float | None] = ()

    def refresh(self, step: int) -> None:
        """Read the loss again if the run has advanced and the last read was a while ago."""
        if step <= self._step or time.monotonic() - self._asked_at < REFRESH_SECONDS:
            return
        self._step, self._asked_at = step, time.monotonic()
        try:
            series = self._trd.metrics.list(self._job_id, ["loss"], resolution=4 * BAR_WIDTH)
        except TrdError:
            return  # the curve is optional; the stream reports real problems
        self.values = series[0].values if series else ()


class LiveView:
    """One job; rendered several times a second."""

    def __init__(self, job: JobView, loss: LossCurve) -> None:
        self._job = job
        self._now: JobProgress = job
        self._started_at = job.started_at
        self._heard_at = time.monotonic()
        self._phases_seen: set[str] = set()
        self._loss = loss

    def take(self, item: StreamItem) -> None:
        """Update the view with an item of the stream."""
        if isinstance(item, JobProgress):
            self._now, self._heard_at = item, time.monotonic()
            if item.phase is not None:
                self._phases_seen.add(item.phase)
            self._loss.refresh(item.step)
        elif isinstance(item, EventView):
            if item.type == "phase" and item.data.get("phase") in set(Phase):
                self._phases_seen.add(Phase(item.data["phase"]))
            elif item.type == "status" and item.data.get("status") == "running" and self._started_at is None:
                self._started_at = item.created_at
        elif isinstance(item, StreamEnd) and item.status is not None:
            self._now = self._now.model_copy(update={"status": item.status})

    def __rich__(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True, min_width=10)
        rows.add_column(no_wrap=True, min_width=BAR_WIDTH)
        rows.add_column(no_wrap=True)
        now = self._now
        if now.phase is not None and now.phase_total:
            done = now.phase_done or 0
            rows.add_row(now.phase, _bar(done, now.phase_total), f"{done} of {now.phase_total}")
        if now.num_steps:
            rows.add_row("steps", _bar(now.step, now.num_steps), self._steps())
        if self._loss.values:
            curve = Text(sparkline(self._loss.values, BAR_WIDTH), style="cyan")
            rows.add_row("loss", curve, number(now.latest_metrics.get("loss")))
        return Group(self._headline(), self._phases(), rows)

    def _headline(self) -> Text:
        text = Text(self._job.id, style="bold")
        if self._job.name is not None:
            text.append(f"  {self._job.name}", style="default")
        text.append("  ").append_text(status_text(self._now.status))
        if self._now.attempt > 1:
            text.append(f"  attempt {self._now.attempt}", style="yellow")
        if self._now.num_rounds is not None and self._now.num_rounds > 1 and self._now.round is not None:
            text.append(f"  round {self._now.round + 1} of {self._now.num_rounds}", style="default")
        if self._started_at is not None:
            seconds = (datetime.now(UTC) - self._started_at).total_seconds()
            text.append(f"  {duration(seconds)}", style="dim")
        return text

    def _phases(self) -> Text:
        text = Text()
        for phase in Phase:
            if phase is self._now.phase:
                text.append(f"▶ {phase}  ", style="bold blue")
            elif phase in self._phases_seen:
                text.append(f"✓ {phase}  ", style="green")
            else:
                text.append(f"· {phase}  ", style="dim")
        return text

    def _steps(self) -> str:
        now = self._now
        parts = [f"{now.step} of {now.num_steps}"]
        if now.eta_seconds is not None and not now.is_over:
            parts.append(f"about {duration(now.eta_seconds - (time.monotonic() - self._heard_at))} left")
        return ", ".join(parts)


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=total, completed=min(done, total), width=BAR_WIDTH)
