"""The pages' links and blocks are in order, and the check finds what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.check import faults, pages

FENCE = "```"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_has_no_fault(page: Path) -> None:
    assert list(faults(page)) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a](missing.md)", "leads to no file"),
        ("See `trd_engine/nothing.py`.", "there is no file trd_engine/nothing.py"),
        ("# A heading\n[a](#another-heading)", "leads to no heading of page.md"),
        (f"{FENCE}python\nx = (\n{FENCE}", "a block of python is not valid"),
        (f"{FENCE}json\n{{'a': 1}}\n{FENCE}", "a block of json is not valid"),
        (f"{FENCE}yaml\na: [1\n{FENCE}", "a block of yaml is not valid"),
        (f'=== "tab"\n\n    {FENCE}python\n    x = (\n    {FENCE}', "a block of python is not valid"),
        (f"{FENCE}\n$ A=1 trd submit x.yaml --wacth\n{FENCE}", "trd submit has no option --wacth"),
        (f"{FENCE}sh\necho x | trd dataset upload x\n{FENCE}", "trd has no command dataset"),
        ("Use `trd jobs --names x`.", "trd jobs has no option --names"),
        (f"{FENCE}\nmake venv && make tea\n{FENCE}", "make has no target tea"),
        (f"{FENCE}\npython -m examples.nothing\n{FENCE}", "there is no module examples.nothing"),
        (f"{FENCE}\npython -m testbed.make_data --rows 3\n{FENCE}", "testbed.make_data has no option --rows"),
    ],
)
def test_a_fault_is_found(tmp_path: Path, text: str, words: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    (fault,) = faults(page)
    assert words in fault


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        f"# It's **here** (`now`)\n[a](#its-here-now) [b](https://example.org/x)\n{FENCE}\n$ trd jobs --name x -n 3\n"
        f"$ cat > x <<'END'\ntrd nothing --at all\nEND\n$ trd submit JOB.yaml --set 'a=1;b' # trd --x\n"
        f"row 17: isn't a command\n$ trd COMMAND --help\n$ python -m pip install --quiet x\n{FENCE}\n"
    )
    assert list(faults(page)) == []
