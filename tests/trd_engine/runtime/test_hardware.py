from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trd_engine.runtime import hardware as processor

XEON = {"architecture": "x86_64", "cpu_name": "Intel Xeon", "avx512_bf16": False, "amx_bf16": False}
EPYC = {"architecture": "x86_64", "cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}
ARM = {"architecture": "aarch64", "cpu_name": "ARM Neoverse V2"}


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    yield
    for question in (processor.has_bf16_matmul, processor.suits_mkl):
        question.cache_clear()


@pytest.mark.parametrize(
    ("found", "has_mkl", "short_products", "mkl"),
    [
        (XEON, True, False, True),
        (XEON, False, False, False),
        (XEON | {"amx_bf16": True}, True, True, True),
        (EPYC, True, True, False),
        (ARM, False, True, False),
    ],
)
def test_the_processor_is_known_by_what_it_says(
    found: dict[str, object], has_mkl: bool, short_products: bool, mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for question in (processor.has_bf16_matmul, processor.suits_mkl):
        question.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    assert (processor.has_bf16_matmul(), processor.suits_mkl()) == (short_products, mkl)


def test_this_machines_own_answer_has_the_fields() -> None:
    assert {processor.has_bf16_matmul(), processor.suits_mkl()} <= {True, False}
