"""Seeds: one number in the spec decides everything random in a run."""

from __future__ import annotations

import hashlib
import os
import random

import numpy
import torch


def derive_seed(*parts: object) -> int:
    """Return a 31-bit seed from its parts, the same on every machine and Python.

    Every use of randomness derives its own, for example ``derive_seed(seed, "rollout", round, problem.id)``,
    so that no use depends on how much randomness another one consumed: what makes a resumed run exact.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed every library's global generator, and ask torch for deterministic kernels if it has them."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    # cuBLAS reads it at its first product; without it, every product of a GPU warns that it may not be reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # That would also write NaN over every new buffer, which finds nothing here and costs a pass over its memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module


def shuffled(count: int, *seed_parts: object) -> list[int]:
    """Return a permutation of ``range(count)``, decided by `seed_parts` alone."""
    order = list(range(count))
    random.Random(derive_seed(*seed_parts)).shuffle(order)
    return order
