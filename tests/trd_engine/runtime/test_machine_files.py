"""Files of a run on two machines: two processes of this one, each with a separate folder in the run's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trd_engine import rank_scenes
from tests.trd_engine.forked import fork_ranks

pytestmark = pytest.mark.xdist_group("ranks")


def test_files_reach_the_disks_that_have_to_have_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    log = tmp_path / "log"
    assert fork_ranks(rank_scenes.share_files, tmp_path, num_processes=2, log=log) == [0, 0], log.read_text()
    assert log.read_text().splitlines() == ["[0, 1]", "[0, 1]"], "each process owns a disk"
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    parts = {"checkpoints/draft/state/part-0": b"\0" * 2500, "checkpoints/draft/state/part-1": b"\1" * 2500}
    assert parts.items() <= one.items(), "the main process has all"
    assert {"checkpoints/draft/empty-0", "checkpoints/draft/empty-1"} <= one.keys()
    assert "checkpoints/draft/state/part-0" not in two
    assert {name: content for name, content in two.items() if name.startswith("sampler")} == {
        "sampler/of-0": b"x" * 1500
    }, "the main process's folder, and nothing else"


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below the folder, by its name."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
