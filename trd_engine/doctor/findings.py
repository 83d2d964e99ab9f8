"""What a check examines, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from trd_engine.config import RunConfig


class NotTriedError(Exception):
    """The check cannot be made here; the message says why."""


class FailedError(Exception):
    """The check found a fault."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: Literal["pass", "fail", "not tried"]
    message: str
    remedy: str = ""
    """What to do about a failure."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Machine:
    """What is examined."""

    device: torch.device
    folder: Path
    """Where runs are written."""
    config: RunConfig | None = None
    """A spec that is to run here."""

    @property
    def is_gpu(self) -> bool:
        """True on CUDA."""
        return self.device.type == "cuda"

    def require_gpu(self) -> None:
        """Raise `NotTriedError` on a CPU."""
        if not self.is_gpu:
            raise NotTriedError("there is no GPU here")
