"""Nothing that users or models wrote reaches the terminal as a control character."""

from __future__ import annotations

import io
import json

import pytest
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from client.cli import output
from client.cli.output import SafeConsole, print_json, remark, say

HOSTILE = [
    *("\x1b[2J", "\x1b]0;title\x07", "\x1bc", "\x07", "\x08\x08", "\x9b31m", "\x9d0;x\x9c", "\x7f", "\x0e", "\x00"),
    *("\u202eabc", "\u2066abc\u2069", "\u200f", "\u061c", "\u2028", "\x85", "a\rb", "\x0b", "\x0c"),
]


def shown(*printed: object) -> str:
    file = io.StringIO()
    console = SafeConsole(file=file, width=200, highlight=False)
    for one in printed:
        console.print(one)
        console.out(str(one) if isinstance(one, str) else "")
    return file.getvalue()


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_whatever_is_printed_is_printable(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    written = shown(text, Text(text), Panel(text, title=text), table)
    say(text)
    remark(text)
    captured = capsys.readouterr()
    for out in (written, captured.out, captured.err):
        assert not output._CONTROLS.search(out), ascii(out)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_json_is_printable_and_the_same(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": text})
    written = capsys.readouterr().out
    assert not output._CONTROLS.search(written), ascii(written)
    assert json.loads(written) == {"name": text}


def test_colours_and_live_views_still_work() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, color_system="standard", width=80, legacy_windows=False)
    console.print("[red]x\x1b[2Jy[/]")
    assert file.getvalue().startswith("\x1b[31mx")
    assert "\x1b[2J" not in file.getvalue()
    with Live(Text("a\x1b[2Jb"), console=console, refresh_per_second=1):
        pass
    assert "\x1b[?25l" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()
