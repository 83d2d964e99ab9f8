"""``python -m worker.bound_exec PARENT_PID COMMAND…``: run COMMAND in this process, and end with the parent.

A supervisor that is killed with SIGKILL cannot stop its child, so the kernel does. This is a separate program because
no Python code may run between fork and exec in a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent ends; the setting survives an exec.

    Trap: "parent" means the thread that forked. It must live as long as the child is needed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it ended before prctl
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
