"""Kinds of devices with the makers' peak figures, and the shares of them that a run is assumed to reach."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9
GIB = 2**30

BANDWIDTH_SHARE = 0.8
"""Of the peak bandwidth, when sampling reads weights and cache. An assumption."""
FLOPS_SHARE = 0.4
"""Of the peak operations, in passes over many tokens. An assumption."""
DECODE_STEP_SECONDS = 2.5e-3
"""Scheduling, kernel launches and sampling of one step of an engine. An assumption."""
DISK_BYTES_PER_SECOND = 1e9
"""Writing and reading checkpoints. An assumption; `trd doctor` measures the write speed."""


@dataclass(frozen=True)
class Hardware:
    """One device."""

    kind: str
    memory_bytes: int | None
    """What a process sees; None for a CPU, whose memory is the machine's."""
    bytes_per_second: float = 0.0
    """Peak memory bandwidth; 0 for a CPU, whose times are calibrated."""
    flops: float = 0.0
    """Peak operations a second in bf16, dense."""

    @property
    def is_gpu(self) -> bool:
        """Whether times are computed from peak figures."""
        return self.memory_bytes is not None


CPU = Hardware("cpu", None)
H100 = Hardware("h100", 79 * GIB, 3.35e12, 989e12)
"""SXM, 80 GB: NVIDIA's data sheet H100 Tensor Core GPU."""
HARDWARE = {
    hardware.kind: hardware
    for hardware in (
        CPU,
        H100,
        Hardware("h200", 140 * GIB, 4.8e12, 989e12),  # SXM, 141 GB: data sheet H200 Tensor Core GPU
        Hardware("a100-80gb", 79 * GIB, 2.039e12, 312e12),  # SXM: data sheet A100 Tensor Core GPU
        Hardware("a100-40gb", 39 * GIB, 1.555e12, 312e12),  # SXM: the same
        Hardware("l40s", 44 * GIB, 0.864e12, 362e12),  # with ECC on: data sheet L40S
    )
}


def hardware_of(device_name: str) -> Hardware:
    """Return the kind of a device by the driver's name for it, such as ``NVIDIA H100 80GB HBM3``.

    A GPU of an unknown kind is taken as an H100.
    """
    words = device_name.lower().replace("-", " ").split()
    if words == ["cpu"]:
        return CPU
    sizes = [word for word in words if word.endswith("gb")]
    named = [f"{word}-{size}" for word in words for size in sizes] + words
    return next((HARDWARE[name] for name in named if name in HARDWARE), H100)
