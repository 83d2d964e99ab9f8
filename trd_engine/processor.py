"""What this machine's processor does well: fixed by the machine, so that a run is bitwise the same again."""

from __future__ import annotations

from functools import cache

import torch


@cache
def has_short_products() -> bool:
    """Whether the processor multiplies bf16 by itself; taken for granted where it is not an x86-64."""
    found = torch.cpu.get_capabilities()
    return found["architecture"] != "x86_64" or bool(found["avx512_bf16"] or found["amx_bf16"])


@cache
def suits_mkl() -> bool:
    """Whether PyTorch's matrix products are MKL's, on a processor by the maker of MKL."""
    return torch.backends.mkl.is_available() and "Intel" in torch.cpu.get_capabilities()["cpu_name"]
