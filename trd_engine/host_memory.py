"""What the process does with memory that it has freed: kept for the next step, where that is a CPU's.

By default glibc gives large blocks back to the system at once and asks for them again: a step frees and takes every
gradient, and the kernel clears the same gigabytes each time. The peak grows by a percent or so,
and is held between the peaks.
"""

from __future__ import annotations

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory(device: torch.device) -> bool:
    """Ask the C library to keep what is freed, for the life of the process; whether it will.

    False on an accelerator, whose tensors are elsewhere, and where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if device.type != "cpu" or mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
