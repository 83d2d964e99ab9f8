"""Files of a run on two machines: two processes of this one, each with a folder of its own in the run's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers import free_port

ROOT = Path(__file__).parents[3]
SCENE = """
import sys
from pathlib import Path
from trd_engine.runtime import machine_files
from trd_engine.runtime.distributed import open_world

machine_files.CHUNK_BYTES = 1000
disk = Path(sys.argv[1])
with open_world(2) as world:
    draft = disk / "checkpoints" / "draft"
    owners = machine_files.disk_owners(draft.parent, world)
    (draft / "state").mkdir(parents=True)
    (draft / "state" / f"part-{world.rank}").write_bytes(bytes([world.rank]) * 2500)
    (draft / f"empty-{world.rank}").touch()
    machine_files.collect_files(draft, owners, world)
    weights = disk / "sampler"
    weights.mkdir()
    (weights / f"of-{world.rank}").write_text("x" * 1500 * (1 + world.rank))
    machine_files.share_folder(weights, world)
    print(owners)
"""


def test_files_reach_the_disks_that_have_to_have_them(tmp_path: Path) -> None:
    apart = play(tmp_path / "apart", ["one", "two"])
    assert apart == ["[0, 1]", "[0, 1]"], "each process owns a disk"
    one, two = files(tmp_path / "apart" / "one"), files(tmp_path / "apart" / "two")
    parts = {"checkpoints/draft/state/part-0": b"\0" * 2500, "checkpoints/draft/state/part-1": b"\1" * 2500}
    assert parts.items() <= one.items(), "the main process has all"
    assert {"checkpoints/draft/empty-0", "checkpoints/draft/empty-1"} <= one.keys()
    assert "checkpoints/draft/state/part-0" not in two
    assert {name: content for name, content in two.items() if name.startswith("sampler")} == {
        "sampler/of-0": b"x" * 1500
    }, "the main process's folder, and nothing else"


def play(folder: Path, disks: list[str]) -> list[str]:
    """Run the scene in a process for each disk; return what they printed."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}
    running = []
    for rank, disk in enumerate(disks):
        (folder / disk).mkdir(parents=True, exist_ok=True)
        own = {"RANK": str(rank), "LOCAL_RANK": "0", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCENE, str(folder / disk)]
        process = subprocess.Popen(
            command, env={**os.environ, **meeting, **own}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
    ended = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    return [out.strip() for out, _ in ended]


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file below the folder, by its name."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
