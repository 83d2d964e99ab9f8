from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trd_engine.runtime.hardware import has_bf16_matmul

XEON = {"architecture": "x86_64", "cpu_name": "Intel Xeon", "avx512_bf16": False, "amx_bf16": False}
EPYC = {"architecture": "x86_64", "cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}
ARM = {"architecture": "aarch64", "cpu_name": "ARM Neoverse V2"}


@pytest.fixture(autouse=True)
def forgotten_answer() -> Iterator[None]:
    has_bf16_matmul.cache_clear()
    yield
    has_bf16_matmul.cache_clear()


@pytest.mark.parametrize(
    ("found", "short_products"), [(XEON, False), (XEON | {"amx_bf16": True}, True), (EPYC, True), (ARM, True)]
)
def test_the_processor_is_known_by_what_it_says(
    found: dict[str, object], short_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert has_bf16_matmul() == short_products


def test_this_machines_own_answer_has_the_fields() -> None:
    assert has_bf16_matmul() in (True, False)
