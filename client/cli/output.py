"""Output of commands: results to the standard output, remarks to the standard error, JSON for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from contract.views import NoticeView

Item = TypeVar("Item", bound=BaseModel)
PIPE_WIDTH = 160
"""Width in columns if the output is not a terminal."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number to list.")]


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Replace the control characters (C0 and C1), and those that reverse text: a terminal would obey them."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def answers() -> Console:
    """Return a console on the standard output."""
    return _console(is_stderr=False)


def remarks() -> Console:
    """Return a console on the standard error."""
    return _console(is_stderr=True)


class SafeConsole(Console):
    """A console on which text that users or models wrote cannot move the cursor, rename the window or reverse text.

    Everything else that is printed or shown live passes `render`; the codes of colours come later.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def out(self, *objects: Any, **options: Any) -> None:
        super().out(*(printable(str(value)) for value in objects), **options)


def _console(*, is_stderr: bool) -> Console:
    console = SafeConsole(stderr=is_stderr, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def say(text: str) -> None:
    """Print a line on the standard output, without wrapping and without markup."""
    answers().print(printable(text), markup=False, soft_wrap=True)


def remark(text: str) -> None:
    """Print a line on the standard error."""
    remarks().print(printable(text), markup=False, soft_wrap=True, style="dim")


def notice_block(notices: Sequence[NoticeView]) -> Group:
    """Return notices for people: what was found, how often, an example and what to do."""
    lines = []
    for notice in notices:
        count = f" ({notice.count})" if notice.count > 1 else ""
        lines.append(Text(f"! {notice.code}{count}: ", style="bold yellow").append(printable(notice.message), "yellow"))
        example = " ".join(printable(notice.example).split())
        details = (("example", example), ("what to do", printable(notice.remedy)))
        lines += [Text(f"  {name}: {text}", style="dim") for name, text in details if text]
    return Group(*lines)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any], *, is_line: bool = False) -> None:
    """Print one JSON document; a sequence as a list of the API. `is_line`: on one line, for streams."""
    document: Any = value
    if isinstance(value, BaseModel):
        document = plain(value)
    elif not isinstance(value, dict):
        document = {"object": "list", "data": [plain(item) for item in value], "has_more": False}
    text = json.dumps(document, ensure_ascii=False, indent=None if is_line else 2)
    text = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    answers().out(text, highlight=False)


def print_result(view: BaseModel, text: str, as_json: bool, note: str | None = None) -> None:
    """Print what a call changed: as JSON, or `text`, with a note as a remark."""
    if as_json:
        print_json(view)
        return
    say(text)
    if note is not None:
        remark(note)


def print_list(
    found: Sequence[Item],
    columns: Sequence[str],
    cells: Callable[[Item], Sequence[str | Text | None]],
    *,
    as_json: bool,
    if_empty: str | None = None,
) -> None:
    """Print a list as JSON, or as a table with a row of `cells` for each object."""
    if as_json:
        print_json(found)
    elif not found and if_empty is not None:
        say(if_empty)
    else:
        rows = table(*columns)
        for one in found:
            rows.add_row(*cells(one))
        answers().print(rows)


def plain(value: BaseModel) -> dict[str, Any]:
    """Return a view as a JSON document."""
    return value.model_dump(mode="json", by_alias=True)


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table; columns whose name begins with ``#`` contain numbers."""
    made = Table(title=title, box=None, header_style="bold", title_justify="left", pad_edge=False)
    for column in columns:
        is_number = column.startswith("#")
        made.add_column(column.removeprefix("#"), justify="right" if is_number else "left", overflow="fold")
    return made


def facts(rows: Iterable[tuple[str, str | Text | None]]) -> Table:
    """Return a table of names and values; rows without a value are omitted."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if value is not None and str(value):
            made.add_row(name, value if isinstance(value, Text) else Text(printable(value)))
    return made


_STATUS_STYLES = {
    "queued": "cyan",
    "running": "blue",
    "pausing": "yellow",
    "paused": "yellow",
    "cancelling": "yellow",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "magenta",
}


def status_text(status: str) -> Text:
    """Return a job's status in its colour."""
    return Text(status, style=_STATUS_STYLES.get(status, ""))


def moment(at: datetime | None) -> str | None:
    """Format a time in the local time zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at is not None else None


def age(at: datetime) -> str:
    """Format how long ago a time is."""
    return duration((datetime.now(UTC) - at).total_seconds()) + " ago"


def duration(seconds: float) -> str:
    """Format a duration: ``42 s``, ``3 min 05 s``, ``2 h 07 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def size(num_bytes: float) -> str:
    """Format a size: ``512 B``, ``3.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def number(value: float | None) -> str:
    """Format a metric's value with four significant digits."""
    return "—" if value is None else f"{value:.4g}"


def percent(share: float) -> str:
    """Format a share: ``62.3 %``."""
    return f"{100 * share:.1f} %"


@contextmanager
def byte_bar(label: str, total_bytes: int, *, is_quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if the standard error is a terminal; yields a function that adds bytes, from any thread."""
    console = remarks()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    is_hidden = is_quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        task = progress.add_task(label, total=total_bytes)
        yield lambda num_bytes: progress.advance(task, num_bytes)
