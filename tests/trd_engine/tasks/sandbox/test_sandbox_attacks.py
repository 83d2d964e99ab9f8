"""Hostile programs, each run for real under every set of layers that this machine allows.

A test looks for the attack's effect from outside; what the program itself reports only makes the failure
readable.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from trd_engine.runtime.errors import SpecError
from trd_engine.tasks.sandbox.confinement import Confinement, candidates
from trd_engine.tasks.sandbox.limits import MIB, Limits
from trd_engine.tasks.sandbox.runner import CaseResult, find_confinement, run_program, whole_replies

QUICK = Limits(cpu_seconds=2, wall_seconds=2.0, total_seconds=10.0, memory_bytes=512 * MIB)
PATIENT = Limits(cpu_seconds=20, wall_seconds=60.0, total_seconds=60.0, memory_bytes=512 * MIB)
"""Limits for programs that end by another limit: a busy machine must not end them by the time."""
EVERY_CONFINEMENT = pytest.mark.parametrize("confinement", candidates(), ids=lambda c: f"namespaces-{c.namespaces}")


def run(program: str, confinement: Confinement, limits: Limits = QUICK, stdin: str = "") -> CaseResult:
    return run_program(program, [{"stdin": stdin}], limits, confinement)[0]


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user, as the engine is one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_this_machine_has_layers_that_hold() -> None:
    assert candidates(), "no code task can be tested here"
    assert find_confinement() == candidates()[0]


@EVERY_CONFINEMENT
def test_honest_program_runs(confinement: Confinement) -> None:
    program = (
        "import collections, random, re, threading, decimal, dataclasses\n"
        "import numpy as np\n"
        "name = input()\n"
        "with open('notes.txt', 'w') as file: file.write(name)\n"
        "print(open('notes.txt').read(), int(np.arange(5).sum()))"
    )
    result = run(program, confinement, Limits(), stdin="Ada\n")
    assert (result.status, result.output, result.error) == ("ok", "Ada 10\n", "")


@EVERY_CONFINEMENT
def test_files_outside_are_neither_changed_nor_read(confinement: Confinement, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret.txt", tmp_path / "folder"
    secret.write_text("canary")
    folder.mkdir()
    before = (secret.stat().st_mode, secret.stat().st_mtime_ns)
    program = f"""
import os
from pathlib import Path
secret, folder = Path({str(secret)!r}), Path({str(folder)!r})
attacks = [
    lambda: secret.write_text("breached"), lambda: print(secret.read_text()), lambda: secret.unlink(),
    lambda: secret.rename(folder / "moved"), lambda: secret.chmod(0o777), lambda: os.utime(secret, (1, 1)),
    lambda: os.truncate(secret, 0), lambda: os.open(secret, os.O_TRUNC), lambda: os.link(secret, "linked"),
    lambda: (folder / "new").touch(), lambda: (folder / "new").mkdir(), lambda: folder.rmdir(),
    lambda: os.symlink(secret, "soft") or Path("soft").write_text("breached"),
    lambda: os.mkfifo(folder / "pipe"), lambda: os.chown(secret, 0, 0), lambda: os.setxattr(secret, "user.x", b"y"),
    lambda: Path("../" * 20 + str(secret)).write_text("breached"), lambda: os.chroot("/"),
    lambda: Path("/dev/shm/trd-breach").touch(), lambda: Path("/tmp/trd-breach").touch(),
    lambda: Path("/proc/self/root" + str(secret)).write_text("breached"),
]
for number, attack in enumerate(attacks):
    try:
        attack()
        print("breached", number)
    except Exception:
        pass
"""
    result = run(program, confinement)
    assert (result.status, result.output) == ("ok", "")
    assert secret.read_text() == "canary"
    assert (secret.stat().st_mode, secret.stat().st_mtime_ns) == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "secret.txt"]
    assert not any(Path(place, "trd-breach").exists() for place in ("/dev/shm", "/tmp"))


@EVERY_CONFINEMENT
def test_network_is_out_of_reach(confinement: Confinement) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        program = f"""
import socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as s:
                s.settimeout(1)
                s.connect(("127.0.0.1", {server.getsockname()[1]}))
                print("connected", family, kind)
        except OSError:
            pass
"""
        assert run(program, confinement).output == ""
        with pytest.raises(TimeoutError):
            server.accept()


@EVERY_CONFINEMENT
def test_secrets_of_the_engines_environment_are_not_there(
    confinement: Confinement, monkeypatch: pytest.MonkeyPatch, victim: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setenv("TRD_API_KEY", "canary-key")
    program = f"""
import os
print(dict(os.environ))
for process in ("self", os.getppid(), {os.getpid()}, {victim.pid}, 1):
    try:
        print("read", open(f"/proc/{{process}}/environ").read())
    except OSError:
        pass
"""
    result = run(program, confinement)
    assert result.status == "ok"
    assert "canary-key" not in result.output
    assert "read" not in result.output
    assert set(os.environ) & {"HF_TOKEN", "DATABASE_URL", "TRD_API_KEY"} == {"TRD_API_KEY"}


@EVERY_CONFINEMENT
def test_fork_bomb_starts_nothing(confinement: Confinement) -> None:
    program = """
import os
for _ in range(10000):
    try:
        if os.fork() == 0:
            os._exit(0)
        print("forked")
    except OSError:
        pass
import multiprocessing, subprocess
commands = [
    lambda: os.system("true"), lambda: os.execv("/bin/true", ["true"]), lambda: subprocess.run(["true"]),
    lambda: os.posix_spawn("/bin/true", ["true"], {}), lambda: multiprocessing.Process().start(),
]
for command in commands:
    try:
        command()
        print("ran")
    except OSError:
        pass
"""
    result = run(program, confinement)
    assert "forked" not in result.output
    assert result.output in ("", "ran\n")  # os.system returns its failure


@EVERY_CONFINEMENT
def test_thread_bomb_is_bounded(confinement: Confinement) -> None:
    program = """
import threading, time
threading.stack_size(65536)
started = 0
try:
    while started < 5000:
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        started += 1
except RuntimeError:
    pass
print(started, flush=True)
import os
os._exit(0)
"""
    assert int(run(program, confinement).output) <= QUICK.num_threads


@pytest.mark.parametrize(
    "bomb",
    [
        "x = bytearray(10**10)",
        "x = []\nwhile True: x.append(bytes(10**6))",
        "import mmap\nx = [mmap.mmap(-1, 2**27) for _ in range(100)]",
        "x = 'a' * 10**6\nwhile True: x += x",
    ],
)
def test_memory_bomb_is_refused_its_memory(bomb: str) -> None:
    result = run(f"{bomb}\nprint('survived')", candidates()[0], PATIENT)
    assert result.output == ""
    assert result.status == "exit code 70"
    assert "Memory" in result.error or "memory" in result.error


@pytest.mark.parametrize(
    "loop",
    [
        "while True: pass",
        "import time\nwhile True:\n  try: time.sleep(99)\n  except BaseException: pass",
        "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except Exception: pass\n"
        "while True: pass",
        "import os, time\nfor n in range(60): os.close(n) if n < 5 else None\ntime.sleep(99)",
        "x = 9**9**9",
        "import atexit\n@atexit.register\ndef _():\n  while True: pass\nwhile True: pass",
        "print(input())",
    ],
    ids=["busy", "asleep", "ignores signals", "pipes closed", "in C", "at exit", "waits for input"],
)
def test_endless_program_is_stopped(loop: str) -> None:
    started = time.monotonic()
    result = run(loop, candidates()[0], Limits(cpu_seconds=1, wall_seconds=0.7, total_seconds=5.0))
    assert time.monotonic() - started < 8.0
    assert result.status == ("exit code 70" if "input" in loop else "time-out")


def test_processor_time_is_bounded_by_itself() -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=30.0)
    result = run(
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", candidates()[0], limits
    )
    assert result.status == "time-out"


@EVERY_CONFINEMENT
def test_endless_and_boundless_program_is_stopped_everywhere(confinement: Confinement) -> None:
    limits = Limits(wall_seconds=0.7, memory_bytes=512 * MIB)
    assert run("while True: pass", confinement, limits).status == "time-out"
    assert "Memory" in run("x = bytearray(10**10)", confinement, limits).error


@EVERY_CONFINEMENT
def test_no_process_can_be_signalled(confinement: Confinement, victim: subprocess.Popen[bytes]) -> None:
    program = f"""
import fcntl, os, signal
for target in ({os.getpid()}, {victim.pid}, os.getppid(), 1, 0, -1):
    for send in (os.kill, os.killpg, lambda p, s: signal.pidfd_send_signal(os.pidfd_open(p), s)):
        try:
            send(target, signal.SIGKILL)
            print("sent", target)
        except (OSError, OverflowError):
            pass
reader, writer = os.pipe()
try:
    fcntl.fcntl(reader, fcntl.F_SETOWN, {victim.pid})
    fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGKILL)
    print("owned")
except OSError:
    pass
"""
    result = run(program, confinement)
    assert (result.status, result.output) == ("ok", "")
    assert victim.poll() is None


@EVERY_CONFINEMENT
def test_bare_system_calls_get_no_further(confinement: Confinement, victim: subprocess.Popen[bytes]) -> None:
    """By number, past everything that Python might refuse by itself."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers below are x86_64's")
    there = victim.pid
    calls = {
        "socket": (41, 2, 1, 0), "clone": (56, 17, 0, 0, 0, 0), "fork": (57,), "vfork": (58,), "kill": (62, there, 9),
        "ptrace": (101, 16, there, 0, 0), "setuid": (105, 0), "tkill": (200, there, 9), "keyctl": (250, 0, -3, 0),
        "mount": (165, 0, 0, 0, 0, 0), "unshare": (272, 0x10000000), "setns": (308, 0, 0), "memfd": (319, b"x", 0),
        "bpf": (321, 0, 0, 0), "userfaultfd": (323, 0), "io_uring_setup": (425, 8, bytes(120)),
        "personality": (135, 0xFFFFFFFF),
        "pidfd_open": (434, there, 0), "clone3": (435, bytes(88), 88), "shmget": (29, 0, 4096, 0o1600),
        "x32 getpid": (0x40000027,), "tgkill": (234, there, there, 9), "rt_sigqueueinfo": (129, there, 9, bytes(128)),
        "prlimit64": (302, there, 7, bytes(16), 0), "sched_setaffinity": (203, there, 8, bytes([1] + [0] * 7)),
    }  # fmt: skip
    program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in {calls!r}.items():
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(*passed) != -1:
        print(name)
"""
    result = run(program, confinement)
    assert (result.status, result.output, result.error) == ("ok", "", "")
    assert victim.poll() is None


@EVERY_CONFINEMENT
def test_floods_are_cut_off(confinement: Confinement) -> None:
    limits = Limits(output_bytes=MIB, scratch_bytes=4 * MIB, file_bytes=2 * MIB, wall_seconds=5.0)
    output = run("while True: print('x' * 10**5)", confinement, limits)
    assert output.status == "too much output"
    big_file = "open('big', 'wb').write(bytes(3 * 2**20))"
    assert run(big_file, confinement, limits).status != "ok"
    many_files = "n = 0\nwhile True:\n  n += 1\n  open(str(n), 'wb').write(bytes(2**20))"
    assert run(many_files, confinement, limits).status != "ok"
    open_files = "x = [open(str(n), 'w') for n in range(1000)]"
    assert "Too many open files" in run(open_files, confinement, limits).error


@EVERY_CONFINEMENT
def test_one_case_leaves_nothing_running_for_the_next(confinement: Confinement) -> None:
    program = "import os\nprint(sorted(os.listdir('.')))\nif input() == 'first':\n    print(list(range(5)))"
    results = run_program(program, [{"stdin": "first\n"}, {"stdin": "second\n"}], QUICK, confinement)
    assert [result.output for result in results] == ["[]\n[0, 1, 2, 3, 4]\n", "[]\n"]


def test_nothing_is_left_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for confinement in candidates():
        run("open('file', 'w').write('x')\nwhile True: pass", confinement, Limits(wall_seconds=0.5))
    assert list(tmp_path.iterdir()) == []
    assert not any("trd_engine.tasks.sandbox" in command for command in _commands_of_children())


def _commands_of_children() -> list[str]:
    """Return the command lines of all processes whose parent is this one."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                commands.append((folder / "cmdline").read_text())
    return commands


def test_sandbox_dies_with_the_engine(tmp_path: Path) -> None:
    """An engine that is killed cannot clean up: the kernel does it."""
    engine = """
from trd_engine.tasks.sandbox.runner import run_program
from trd_engine.tasks.sandbox.confinement import candidates
from trd_engine.tasks.sandbox.limits import Limits
run_program("import time\\nwhile True: time.sleep(1)", [{"stdin": ""}], Limits(wall_seconds=60), candidates()[0])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", engine],
        cwd=Path(__file__).parents[4],
        env={**os.environ, "TMPDIR": str(tmp_path)},  # the sandbox's folder, which nobody is left to remove
    )
    deadline = time.monotonic() + 20
    while not (sandboxes := _descendants(process.pid, depth=3)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sandboxes
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(_is_alive, sandboxes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_alive, sandboxes))


def _descendants(process: int, depth: int) -> list[int]:
    """Return the processes `depth` generations below one; none until there is such a generation."""
    generation = [process]
    for _ in range(depth):
        generation = [child for parent in generation for child in _children(parent)]
    return generation


def _children(process: int) -> list[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{process}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def _is_alive(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_expected_outputs_are_not_in_the_sandbox() -> None:
    """A program may search all it can reach; what it is compared with never comes in."""
    program = """
import gc, sys
frame = sys._getframe()
while frame:
    print({**frame.f_locals})
    frame = frame.f_back
print([item for item in gc.get_objects() if isinstance(item, (dict, list)) and len(str(item)) < 2000])
"""
    result = run(program, candidates()[0], Limits(), stdin="known-input")
    assert "known-input" in result.output  # the search does see the sandbox's own memory
    assert "TRD_ENABLE" not in result.output


def test_machine_without_any_layer_runs_no_code_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trd_engine.tasks.sandbox.runner.candidates", lambda: [])
    with pytest.raises(SpecError, match=r"needs Linux .* on this machine: none of it"):
        find_confinement.__wrapped__()


def test_layers_that_leak_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is a real attack: with the layers taken off, it reports what went through."""
    bare = Confinement("none", landlock=False)
    monkeypatch.setattr("trd_engine.tasks.sandbox.runner.candidates", lambda: [bare])
    with pytest.raises(SpecError, match=r"reading a file outside, .*went through"):
        find_confinement.__wrapped__()


def test_many_cases_cannot_flood_the_engine_together() -> None:
    """Each prints less than it may; its expected output is not in the sandbox, so that no case fails."""
    limits = Limits(output_bytes=MIB, total_output_bytes=2 * MIB)
    cases = [{"stdin": str(number)} for number in range(4)]
    results = run_program("print('x' * 900_000)", cases, limits, candidates()[0])
    assert [r.status for r in results] == ["ok", "ok", "too much output"]


def test_a_truncated_reply_is_none() -> None:
    whole = json.dumps({"status": "ok", "output": "1\n", "passed": False, "error": ""}).encode() + b"\n"
    assert whole_replies(whole + whole[:20]) == whole_replies(whole) == [CaseResult("ok", "1\n")]
    assert whole_replies(whole[:20]) == []


def test_replies_are_json_of_known_fields() -> None:
    result = run_program("def f(x): return {x, x}", [{"entry_point": "f", "arguments": [3]}], QUICK, candidates()[0])
    assert json.loads(result[0].output) == [3]
