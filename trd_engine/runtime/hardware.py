"""Devices, dtypes and the processor's abilities. They depend on the machine alone, so that runs are reproducible."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from trd_engine.runtime.errors import DeviceUnavailableError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_DEVICE_FILES = Path("/dev")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
_BF16_CAPABILITY = (8, 0)
"""Of Ampere, CUDA's first with products in bf16."""


@cache
def has_bf16_matmul() -> bool:
    """Return whether the processor has bf16 matrix instructions; assumed true on other architectures than x86-64."""
    found = torch.cpu.get_capabilities()
    return found["architecture"] != "x86_64" or bool(found["avx512_bf16"] or found["amx_bf16"])


def local_device(device: torch.device) -> torch.device:
    """Return this process's GPU if `device` is "cuda" without a number, else `device`."""
    if str(device) != "cuda":
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


def choose_device(name: str) -> torch.device:
    """Return the device of this name; auto is the current GPU if there is one. Raises `DeviceUnavailableError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and _has_unused_gpu():
            raise DeviceUnavailableError(
                f"device = auto: this machine has an NVIDIA GPU, but CUDA {torch.version.cuda} of PyTorch "
                f"{torch.__version__} does not work on it; the driver may be older than that CUDA needs (nvidia-smi "
                "shows its version): update it, or set device to cpu to train on the processor"
            )
    try:
        torch.empty(0, device=name)
        # A kernel, for a PyTorch that is not built for this GPU; on this process's own, since memory is taken there.
        torch.zeros(1, device=local_device(torch.device(name)))
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnavailableError(
            f"device = {name}: {str(error).partition(chr(10))[0]}; set device to cpu, or use a worker that has this "
            "device"
        ) from error
    return torch.device(name)


def _has_unused_gpu() -> bool:
    """Return whether the driver shows a GPU to a PyTorch that is built for it. A user may hide all GPUs on purpose."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return torch.version.cuda is not None and not is_hidden and any(_DEVICE_FILES.glob("nvidia[0-9]*"))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed.

    What PyTorch raises on a CPU, and for CUDA's libraries (cuBLAS, NCCL, Triton), only its text identifies.
    """
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in text for part in _OUT_OF_MEMORY)


def choose_compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the training passes; `precision` auto is bf16 on a GPU that computes in it, else fp32.

    Raises `DeviceUnavailableError` for bf16 on a GPU without it: torch would emulate it, and vLLM does not start.
    """
    is_gpu = device.type == "cuda"
    has_bf16 = not is_gpu or torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
    if precision == "auto":
        return torch.bfloat16 if is_gpu and has_bf16 else torch.float32
    if precision == "bf16" and not has_bf16:
        raise DeviceUnavailableError(
            f"precision = bf16: {torch.cuda.get_device_name(device)} does not compute in bf16; set precision to auto, "
            "which is fp32 there, or use a GPU of the Ampere generation or a newer one"
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def keep_freed_memory(device: torch.device) -> bool:
    """Ask the C library to keep freed memory for the life of the process. Return True if it agrees.

    By default glibc returns large blocks to the system: every step frees and allocates all gradients, and the kernel
    clears the same gigabytes each time. The peak grows by about one percent.
    False on an accelerator, whose tensors are elsewhere, and if the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if device.type != "cpu" or mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
