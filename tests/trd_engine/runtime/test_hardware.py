from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trd_engine.runtime import hardware
from trd_engine.runtime.errors import DeviceUnavailableError
from trd_engine.runtime.hardware import choose_compute_dtype, choose_device, has_bf16_matmul, is_out_of_memory
from trd_engine.runtime.seeds import seed_everything

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


@pytest.fixture
def gpu_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose driver shows a GPU that PyTorch cannot use."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(hardware, "_DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.usefixtures("gpu_without_cuda")
def test_a_gpu_that_does_not_work_is_an_error_and_not_a_slow_run() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"CUDA 13\.0 .* does not work .* set device to cpu"):
        choose_device("auto")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.usefixtures("gpu_without_cuda")
@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_user_may_hide_the_gpus(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device("auto").type == "cpu"


def test_a_processor_is_the_choice_without_a_gpu_or_with_a_pytorch_for_processors(
    gpu_without_cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (gpu_without_cuda / "nvidia0").rename(gpu_without_cuda / "nvidiactl")
    assert choose_device("auto").type == "cpu"


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_without_bf16_trains_in_fp32(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    gpu = torch.device("cuda", 0)
    assert choose_compute_dtype("auto", gpu) == dtype
    assert choose_compute_dtype("fp32", gpu) == torch.float32
    if dtype == torch.float32:
        with pytest.raises(DeviceUnavailableError, match=r"bf16: Tesla T4 does not .*set precision to auto"):
            choose_compute_dtype("bf16", gpu)
    else:
        assert choose_compute_dtype("bf16", gpu) == torch.bfloat16


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_a_processor_has_the_dtype_that_is_asked_for(precision: str, dtype: torch.dtype) -> None:
    assert choose_compute_dtype(precision, torch.device("cpu")) == dtype


def test_a_gpu_for_which_pytorch_has_no_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error as PyTorch writes it, at the first kernel; a tensor without elements needs none."""
    real_empty, chosen = torch.empty, list[object]()
    text = "CUDA error: no kernel image is available for execution on the device\nSearch for `cudaErrorNoKernelImage'"

    def zeros(*_: object, device: torch.device) -> torch.Tensor:
        chosen.append(device)
        raise RuntimeError(text)

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: real_empty(*shape))
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(DeviceUnavailableError, match=r"cuda: .* execution on the device; set device to cpu"):
        choose_device("cuda")
    assert chosen == [torch.device("cuda", 3)] * 2, "no process may take memory of another's GPU"


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("a text about what is out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_known_by_what_libraries_say(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


def test_cublas_is_asked_for_reproducible_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seed_everything(0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    seed_everything(0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
