"""A program's scratch folder: empty for each case, and counted whole if no file system bounds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.trd_engine.tasks.sandbox.test_sandbox_attacks import EVERY_CONFINEMENT, run
from trd_engine.tasks.sandbox.confinement import Confinement
from trd_engine.tasks.sandbox.drain import WatchedScratch, scratch_bytes
from trd_engine.tasks.sandbox.limits import MIB, Limits, empty_scratch
from trd_engine.tasks.sandbox.runner import run_program


@EVERY_CONFINEMENT
def test_every_case_begins_with_an_empty_scratch_folder(confinement: Confinement) -> None:
    program = """
import os
print(os.listdir("."))
os.mkdir("kept")
open("kept/notes", "w").close()
os.mkdir("shut", 0o300)
open("shut/notes", "w").close()
os.mkdir("shut/sealed", 0)
os.mkdir("sealed", 0)
open(".hidden", "w").close()
open(b"\\xff", "w").close()
for _ in range(1500):
    os.mkdir("deeper")
    os.chdir("deeper")
"""
    # 1,500 nested folders take seconds to make and to remove on a busy machine.
    results = run_program(program, [{"stdin": ""}] * 3, Limits(), confinement)
    assert [(result.status, result.output, result.error) for result in results] == [("ok", "[]\n", "")] * 3


def test_folders_deeper_than_a_recursion_goes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk is ours, outside of the program's process and its limits."""
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        Path("d").mkdir()
        os.chdir("d")
    Path("file").write_bytes(b"x" * 1000)
    monkeypatch.chdir(tmp_path)
    try:
        assert scratch_bytes(WatchedScratch(tmp_path, os.getpid())) >= 1501 * 4096
    finally:  # pytest's own clean-up does not go so deep
        empty_scratch(tmp_path)


@pytest.mark.parametrize(
    "program",
    [
        "for n in range(10**6): open(f'f{n}', 'w').close()",
        "import os\nfor n in range(10**6): os.mkdir(f'd{n}')",
        "import os\nheld = []\nfor n in range(40):\n f = open('f', 'wb'); os.unlink('f'); f.write(bytes(2**20))"
        "\n f.flush(); held.append(f)\nimport time; time.sleep(3)",
        "import mmap, os\nheld = []\nfor n in range(40):\n f = open('f', 'w+b'); os.unlink('f'); f.write(bytes(2**20))"
        "\n f.flush(); held.append(mmap.mmap(f.fileno(), 2**20)); f.close()\nimport time; time.sleep(3)",
    ],
)
def test_a_scratch_folder_that_no_file_system_bounds_is_counted_whole(program: str) -> None:
    """Empty files and folders, and files that are unlinked but open or mapped."""
    limits = Limits(scratch_bytes=16 * MIB, wall_seconds=6.0)
    result = run(program, Confinement("none", landlock=True), limits)
    assert result.status == "too much in the scratch folder"
