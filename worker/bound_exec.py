"""``python -m worker.bound_exec PARENT_PID COMMAND…``: become COMMAND, and die with the parent.

A supervisor that is killed with signal 9 can stop nobody; the kernel then kills its child. Run between
fork and exec in a program of its own, because Python code must not run there in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent goes; the wish outlives an exec.

    A trap: "parent" is the thread that forked. It must live as long as the child is wanted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it went before the wish was made
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
