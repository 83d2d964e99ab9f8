"""Harm to the machine of a worker: its clock, its disk and its memory. Disks and memory groups take root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.harness.deployment import Worker
from tests.faults.harness.scene import ENDED, Scene
from tests.worker.workbench import eventually

MEMORY_GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


def no_worker(scene: Scene) -> None:
    """Let the job wait until the case has started its own worker."""
    for name in ("a", "b"):
        scene.deployment.workers[name].kill()


def one_worker(scene: Scene) -> None:
    scene.deployment.workers["b"].kill()


def only_worker(scene: Scene, folder: Path | None = None, **environment: str) -> Worker:
    """Stop the two workers, and start one of its kind."""
    for name in ("a", "b"):
        scene.deployment.workers[name].kill()
    name = f"other-{len(scene.deployment.pids)}"
    return scene.deployment.start_worker(name, folder=folder, **environment)


CLOCK = r"""
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
extern "C" int clock_gettime(clockid_t id, struct timespec *at) {
    static auto real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && id == CLOCK_REALTIME) at->tv_sec += atol(getenv("CLOCK_OFFSET_SECONDS"));
    return failed;
}
"""
"""Shifts the wall clock of a process, and leaves the monotonic one. (libfaketime 0.9.10 breaks Python's sleep.)"""


def _clock(scene: Scene, hours: int) -> dict[str, str]:
    library = scene.deployment.folder / "clock.so"
    if not library.exists():
        command = ["g++", "-x", "c++", "-", "-shared", "-fPIC", "-ldl", "-o", str(library)]
        subprocess.run(command, input=CLOCK.encode(), check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET_SECONDS": str(3600 * hours)}


def clock_ahead(scene: Scene) -> None:
    only_worker(scene, **_clock(scene, 1))


def clock_ahead_then_behind(scene: Scene) -> None:
    """Kill the first worker, whose clock is an hour ahead; one whose clock is an hour behind continues."""
    scene.until_step(1)
    scene.mark()
    scene.holder().kill()
    scene.deployment.start_worker("behind", **_clock(scene, -1))


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """Mount a small disk, which only root can do."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of a disk; return the file that takes it all."""
    filler = folder / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(b"x" * 2**16)
            file.flush()
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x")
    return filler


def disk_full(phase: str) -> Callable[[Scene], None]:
    """Return a case in which the worker's disk fills up in a phase, and has room again after the attempt."""

    def inject(scene: Scene) -> None:
        with small_disk(scene.deployment.folder / "small", megabytes=96) as disk:
            worker = only_worker(scene, disk)
            if phase == "staging":
                scene.until_step(1)
                number = 2
                worker.send(signal.SIGSTOP)
                scene.kill_child()
                filler = fill(disk)
                worker.send(signal.SIGCONT)
                scene.until_attempt_ended(1)
            else:
                scene.until_phase(phase, times=2)
                number = 1
                filler = fill(disk)
            scene.mark()
            scene.until_attempt_ended(number)
            codes = scene.deployment.sql(
                "SELECT error_code FROM attempts WHERE job_id = %s AND number = %s", scene.job_id, number
            )
            filler.unlink()
            assert codes == [("disk_full",)], codes
            eventually(lambda: scene.status() in ENDED, seconds=240)

    return inject


@contextmanager
def memory_group(*pids: int) -> Iterator[Path]:
    """Make a memory group of these processes, which only root can do; kill the processes left in it at the end."""
    group = next(path for path in MEMORY_GROUPS if (path / "cgroup.procs").exists()) / f"trd-faults-{os.getpid()}"
    group.mkdir()
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


HOG = """
import os, sys
open("/proc/self/oom_score_adj", "w").write("-1000")
open(sys.argv[1], "w").write(str(os.getpid()))
taken = []
while os.path.exists(f"/proc/{sys.argv[2]}/exe"):
    taken.append(bytearray(b"x" * 2**20))
"""


def job_for_later(scene: Scene) -> None:
    one_worker(scene)
    scene.job_id = "submitted by the case"


def host_out_of_memory(scene: Scene) -> None:
    """Let another program take all memory of the worker's group, so that the kernel kills the engine."""
    d = scene.deployment
    with memory_group(d.workers["a"].pid) as group:
        scene.submit()
        scene.until_step(1)
        (child,) = scene.holder().children()
        Path(f"/proc/{child}/oom_score_adj").write_text("1000")  # the small engine is not the biggest process
        is_v2 = (group / "memory.max").exists()
        used = int((group / ("memory.current" if is_v2 else "memory.usage_in_bytes")).read_text())
        (group / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(used + 2**27))
        scene.mark()
        subprocess.run([sys.executable, "-c", HOG, str(group / "cgroup.procs"), str(child)], timeout=120, check=True)
        scene.until_attempt_ended(1)
        codes = d.sql("SELECT error_code FROM attempts WHERE job_id = %s AND number = 1", scene.job_id)
        assert codes == [("host_out_of_memory",)], codes
        eventually(lambda: scene.status() in ENDED, seconds=240)
