"""Kinds of devices with the makers' peak figures, and the shares of them that a run is assumed to reach."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

GB = 10**9
GIB = 2**30

BANDWIDTH_SHARE = 0.8
"""Share of the peak bandwidth, when sampling reads weights and cache. An assumption."""
FLOPS_SHARE = 0.4
"""Share of the peak operations, in passes over many tokens. An assumption."""
DECODE_STEP_SECONDS = 2.5e-3
"""Scheduling, kernel launches and sampling of one step of an engine. An assumption."""
DISK_BYTES_PER_SECOND = 1e9
"""Writing and reading checkpoints. An assumption; `trd doctor` measures the write speed."""


@dataclass(frozen=True)
class Hardware:
    """One device."""

    kind: str
    """A name of `HARDWARE`, or ``gpu-23.6gib`` for another GPU with so much memory."""
    memory_bytes: int | None
    """Bytes that a process sees; None for a CPU, whose memory is the machine's."""
    bytes_per_second: float = 0.0
    """Peak memory bandwidth; 0 for a CPU, whose times are calibrated."""
    flops: float = 0.0
    """Peak operations a second in bf16 (without it: in fp32), dense, with sums in fp32."""
    has_bf16: bool = True
    """Whether a GPU computes in bf16; without it precision auto is fp32."""
    speed_of: str | None = None
    """The kind whose speed is assumed, because this GPU's is unknown."""

    @property
    def speed_source(self) -> str:
        """Whose peak figures are taken, for messages."""
        if self.speed_of is None:
            return self.kind
        return f"{self.speed_of}, an assumption: the speed of {self.kind} is not known"

    @property
    def is_gpu(self) -> bool:
        """Whether times are computed from peak figures."""
        return self.memory_bytes is not None


CPU = Hardware("cpu", None)
H100 = Hardware("h100", 79 * GIB, 3.35e12, 989e12)
"""SXM, 80 GB."""
_GPUS = (
    # NVIDIA's data sheet of each; memory as a process sees it. Operations without sparsity.
    H100,
    Hardware("h100-pcie", 79 * GIB, 2.0e12, 756e12),
    Hardware("h100-nvl", 93 * GIB, 3.9e12, 835e12),
    Hardware("h200", 140 * GIB, 4.8e12, 989e12),  # SXM
    Hardware("b200", 178 * GIB, 7.7e12, 2250e12),  # HGX
    Hardware("a100-80gb", 79 * GIB, 2.039e12, 312e12),  # SXM
    Hardware("a100-40gb", 39 * GIB, 1.555e12, 312e12),  # SXM
    Hardware("a40", 44 * GIB, 0.696e12, 149.7e12),
    Hardware("a30", int(23.5 * GIB), 0.933e12, 165e12),
    Hardware("a10", 22 * GIB, 0.6e12, 125e12),
    Hardware("a10g", 22 * GIB, 0.6e12, 70e12),
    Hardware("l40s", 44 * GIB, 0.864e12, 362e12),
    Hardware("l40", 44 * GIB, 0.864e12, 181e12),
    Hardware("l4", 22 * GIB, 0.3e12, 121e12),
    Hardware("rtx-a6000", 47 * GIB, 0.768e12, 154.8e12),
    Hardware("rtx-6000-ada", 47 * GIB, 0.96e12, 364e12),
    # NVIDIA's white papers of the Ampere GA102, Ada and Blackwell RTX architectures
    Hardware("rtx-3090", int(23.5 * GIB), 0.936e12, 71e12),
    Hardware("rtx-4090", int(23.5 * GIB), 1.008e12, 165.2e12),
    Hardware("rtx-5090", int(31.3 * GIB), 1.792e12, 209.5e12),
    Hardware("t4", int(14.6 * GIB), 0.32e12, 8.1e12, has_bf16=False),
)
HARDWARE = {hardware.kind: hardware for hardware in (CPU, *_GPUS)}
_OTHER_GPU = re.compile(r"gpu-(\d{1,4}(?:\.\d+)?)(gib|gb)")


def hardware_of(device_name: str, memory_bytes: int) -> Hardware:
    """Return the hardware of a GPU by the driver's name for it, such as ``NVIDIA H100 80GB HBM3``, and its memory.

    The speed of a GPU that is not in the table, and of a part of one (MIG), is taken from the kind with the nearest
    memory that has bf16, of several the slowest.
    """
    found = _by_driver_name(device_name)
    if found is not None and found.memory_bytes is not None and abs(memory_bytes / found.memory_bytes - 1) < 0.1:
        return replace(found, memory_bytes=memory_bytes)
    nearest = min(
        (gpu for gpu in _GPUS if gpu.has_bf16),
        key=lambda gpu: (abs((gpu.memory_bytes or 0) - memory_bytes), gpu.bytes_per_second * gpu.flops),
    )
    return replace(nearest, kind=f"gpu-{memory_bytes / GIB:.1f}gib", memory_bytes=memory_bytes, speed_of=nearest.kind)


def hardware_of_kind(kind: str) -> Hardware:
    """Return the hardware that a user or a worker names: a kind, ``gpu-24gb`` for another GPU, or the driver's name.

    Raises ValueError, with what to write instead.
    """
    text = kind.strip().lower()
    if text in HARDWARE:
        return HARDWARE[text]
    other = _OTHER_GPU.fullmatch(text)
    if other is not None and float(other[1]) > 0:
        return hardware_of("", round(float(other[1]) * (GIB if other[2] == "gib" else GB)))
    found = _by_driver_name(text)
    if found is None:
        raise ValueError(
            f"the kind of device {kind!r} is not known: use one of {', '.join(HARDWARE)}, or gpu-24gb for another GPU "
            "with 24 GB of memory, whose speed is then an assumption"
        )
    return found


def _by_driver_name(device_name: str) -> Hardware | None:
    """Return the kind all of whose words are in the name, the longest one; None for a part of a GPU."""
    words = device_name.lower().replace("-", " ").split()
    found = [gpu for gpu in _GPUS if "mig" not in words and set(gpu.kind.split("-")) <= set(words)]
    return max(found, key=lambda gpu: gpu.kind.count("-"), default=None)
