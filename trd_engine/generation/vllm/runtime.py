"""vLLM inside our process: its import, its environment, and the global state that is restored after it.

vLLM assumes that it owns the process: it seeds torch's global generator, replaces `torch.set_num_threads`, exports
variables such as LD_PRELOAD to our children and holds one distributed state for all its engines. A trainer and two
samplers share this process, so global state is restored or counted here.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from types import ModuleType

import torch

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in our process: weights and progress at hand
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # FlashInfer's sampler is compiled at its first use, for which slim images lack nvcc. Requests with seeds, as all of
    # ours are, never reach it.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # In fp32 only Triton's attention serves, whose products are TF32 by default: off the trainer's by as much as the
    # probe of the sampler allows. Products in bf16 do not follow this.
    "TRITON_F32_DEFAULT": "ieee",
}
_LEAKED = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LOCAL_WORLD_SIZE", "NUMEXPR_MAX_THREADS", "CUDA_VISIBLE_DEVICES")
"""Variables that vLLM or we set for an engine, and that would break our children or torchrun."""

_MODULES = ("vllm.engine.arg_utils", "vllm.lora.request", "vllm.v1.engine.llm_engine")
"""Modules that `vllm` imports late; imported here, so that all their warnings are muted in one place."""

_num_engines = 0
_owns_process_group = False


def import_vllm() -> ModuleType:
    """Return the module `vllm`, imported with our settings; raises `ImportError` if it is missing or broken."""
    os.environ.update(_SETTINGS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with _kept_environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in _MODULES:
                importlib.import_module(name)
            return importlib.import_module("vllm")
        except (RuntimeError, OSError, AttributeError) as error:
            # torchvision or torchaudio of another build than torch's
            raise ImportError(f"vllm is installed but does not import: {error}") from error


@contextmanager
def engine_construction(visible_devices: Sequence[str] | None = None) -> Iterator[None]:
    """Count the engine that is made within the block, and restore the global state that vLLM changes.

    `visible_devices`: the GPUs that the engine's processes may see; this process sees the same as before.
    """
    global _num_engines, _owns_process_group
    from vllm.v1.engine import core

    core.cleanup_dist_env_and_memory = _after_shutdown  # type: ignore[attr-defined]
    if _num_engines == 0:
        _owns_process_group = not torch.distributed.is_initialized()
    set_num_threads = torch.set_num_threads
    _num_engines += 1  # before the engine is made: if that fails, it is shut down all the same
    with _kept_environment(), _kept_random_state(), _children_without_interrupts(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if visible_devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible_devices)
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads


@contextmanager
def _children_without_interrupts() -> Iterator[None]:
    """Block SIGINT in all processes that start within the block: a terminal sends Ctrl-C to every process, and those of
    engines would end while ours continues to its next boundary. Children inherit the mask, so vLLM's handler never
    runs. SIGTERM stays: at its exit Python ends children by it, and waits for them."""
    resource_tracker.ensure_running()  # Python unblocks SIGINT when it starts it, at the first queue or lock
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_shutdown(shutdown_ray: bool = False) -> None:
    """Replace the clean-up that vLLM runs after each engine's shutdown, which would destroy the distributed state of
    the other engines and the process group of the trainer."""
    global _num_engines
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    _num_engines = max(0, _num_engines - 1)
    if _num_engines == 0 and _owns_process_group:
        cleanup_dist_env_and_memory(shutdown_ray)
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def engine_use(*, on_cpu: bool) -> Iterator[None]:
    """Restore the global random states after the steps of an engine, which changes them even for requests with seeds.

    On a CPU nothing is compiled: vLLM would compile a counting kernel for log-probabilities, which takes seconds and
    needs a C++ compiler.
    """
    eager = torch.compiler.set_stance("force_eager") if on_cpu else nullcontext()
    with _kept_random_state(), eager:
        yield


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Restore the global random states of Python, NumPy and torch after the block."""
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Not of all GPUs of the machine, which are other processes'; a run on the CPU does not start CUDA.
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def _kept_environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _LEAKED}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
