"""The attack that a sandbox must withstand before it is given anybody's program."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_PROGRAM = """
import os, signal, socket, sys

def attempt(action):
    try:
        return bool(action())
    except BaseException:
        return False

def write(path):
    with open(path, "w") as file:
        return file.write("breached")

def read(path):
    with open(path) as file:
        return file.read()

def connect(port):
    with socket.socket() as s:
        s.settimeout(1)
        s.connect(("127.0.0.1", port))
        return True

def fork():
    if os.fork() == 0:
        os._exit(0)
    return True

def truncate(path):
    os.truncate(path, 0)
    return True

def chmod(path):
    os.chmod(path, 0o777)
    return True

def signal_to(process):
    os.kill(process, 0)
    return True

def attack(folder, engine, port):
    import json, random, math, collections
    tries = {
        "writing a file outside": lambda: write(folder + "/written"),
        "overwriting a file outside": lambda: write(folder + "/secret"),
        "truncating a file outside": lambda: truncate(folder + "/secret"),
        "changing a file's mode outside": lambda: chmod(folder + "/secret"),
        "reading a file outside": lambda: read(folder + "/secret"),
        "reading the engine's environment": lambda: read(f"/proc/{engine}/environ"),
        "reading the sandbox's environment": lambda: read(f"/proc/{os.getppid()}/environ"),
        "connecting to a port": lambda: connect(port),
        "starting a process": fork,
        "running a command": lambda: os.posix_spawn("/bin/true", ["true"], {}) > 0,
        "signalling the engine": lambda: signal_to(engine),
        "signalling the sandbox": lambda: signal_to(os.getppid()),
    }
    assert write("scratch.txt") and read("scratch.txt"), "the scratch folder does not work"
    return [name for name, action in tries.items() if attempt(action)]
"""

Attack = Callable[[str, Sequence[Any]], list[str]]
"""Runs a program's function `attack` with arguments in a sandbox, and returns its value."""


def successful_attacks(run: Attack) -> list[str]:
    """Return what a hostile program could do, in words; nothing, if the sandbox holds."""
    with tempfile.TemporaryDirectory(prefix="trd-canary-") as folder, socket.socket() as listener:
        secret = Path(folder) / "secret"
        secret.write_text("canary")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        breaches = run(_PROGRAM, [folder, os.getpid(), listener.getsockname()[1]])
        # Seen from outside as well: a program's own report is not proof.
        if secret.read_text() != "canary" or len(list(Path(folder).iterdir())) != 1:
            breaches = [*breaches, "changing files outside"]
        return breaches
