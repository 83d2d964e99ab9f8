"""What a check examines, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
class Measured:
    """The message of a check that passed, with figures for programs."""

    message: str
    figures: Mapping[str, int]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: Literal["pass", "fail", "not tried"]
    message: str
    remedy: str = ""
    """What to do about a failure."""
    seconds: float = 0.0
    figures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """What is examined."""

    device: torch.device
    folder: Path
    """Folder in which runs are written."""
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
