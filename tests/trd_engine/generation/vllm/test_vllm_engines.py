"""Which engines a run asks vLLM for, on which devices, and that they rest while the student is trained.

No GPU is here: what is held are the arguments, recorded in the place of an engine. `test_own_processes` runs one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import trd_engine.generation.vllm.generator as vllm_module
from tests.trd_engine.tiny_runs import MODELS, events, spec, write_data
from tests.worker.workbench import eventually, process_exists
from trd_engine.config import SamplingConfig, parse_config
from trd_engine.generation.vllm.engines import sampler_devices, vllm_generators
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings
from trd_engine.generation.vllm.residence import GIB
from trd_engine.generation.vllm.runtime import engine_use, import_vllm
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import DeviceUnavailableError, SpecError
from trd_engine.training.loop import distil
from trd_engine.types import GenerationRequest, SamplingSettings
from worker.engine_child import failure_code

GPU = torch.device("cuda", 0)
APART = {"placement": "separate", "tensor_parallel_size": 2}


class Recorded:
    """The arguments of an engine that is not made."""

    def __init__(self, folder: Path, settings: VllmSettings) -> None:
        self.arguments = {"folder": folder, **asdict(settings)}

    def sleep(self) -> None:
        """Do nothing."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_module, "VllmGenerator", Recorded)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8,9,10,11")


def arguments(
    world: World, *, sampling: dict[str, Any], device: torch.device = GPU, **changes: Any
) -> list[dict[str, Any]]:
    """Return the arguments of the student's engine, and of the teacher's if it has one."""
    config = parse_config(spec(Path("data"), sampling=sampling, devices=world.size, **changes))
    engines = vllm_generators(config, device, torch.bfloat16, world, memory=lambda: (60 * GIB, 80 * GIB))
    return [engine.arguments for engine in dict.fromkeys(engines) if isinstance(engine, Recorded)]


@pytest.mark.usefixtures("made")
def test_one_engine_of_one_process_is_in_it_and_has_what_is_free() -> None:
    (student,) = arguments(World(), sampling={}, mode="opd", loss={})
    assert (student["gpu_memory_utilization"], student["visible_devices"]) == (0.737, None)
    assert student["sleep_level"] == 2, "full fine-tuning makes the weights stale, which are loaded again"
    (student,) = arguments(World(), sampling={}, mode="opd", loss={}, lora={"rank": 4, "alpha": 8})
    assert student["sleep_level"] == 1


@pytest.mark.usefixtures("made")
def test_two_engines_take_turns_and_have_processes_of_their_own() -> None:
    for engine in arguments(World(), sampling={"gpu_memory_utilization": 0.6}):
        assert (engine["gpu_memory_utilization"], engine["visible_devices"], engine["sleep_level"]) == (0.6, ["4"], 2)


@pytest.mark.usefixtures("made")
def test_each_of_several_processes_samples_on_its_own_or_behind_all_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    (here,) = arguments(World(1, 2), sampling={}, mode="opd", loss={})
    assert (here["visible_devices"], here["tensor_parallel_size"], here["sleep_level"]) == (["5"], 1, 2)
    apart_by_three = {**APART, "tensor_parallel_size": 3}  # the tiny model has three attention heads
    (apart,) = arguments(World(1, 2), sampling=apart_by_three, mode="opd", loss={})
    assert (apart["visible_devices"], apart["tensor_parallel_size"]) == (["9", "10", "11"], 3)
    assert (apart["gpu_memory_utilization"], apart["sleep_level"]) == (0.9, 0)


@pytest.mark.usefixtures("made")
def test_an_engine_samples_on_the_gpu_that_the_spec_names() -> None:
    """In the process of the run vLLM would take the first one, which others may use."""
    third = torch.device("cuda", 2)
    (here,) = arguments(World(), sampling={}, device=third, mode="opd", loss={})
    (apart,) = arguments(World(), sampling={"placement": "separate"}, device=third, mode="opd", loss={})
    assert (here["visible_devices"], apart["visible_devices"]) == (["6"], ["7"])


def test_random_states_of_gpus_that_others_use_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would warn that it starts every GPU, and fail here, as with a driver that is too old."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    before = torch.get_rng_state()
    with engine_use(on_cpu=True):
        torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_products_in_fp32_are_not_rounded_to_tf32() -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    knobs = pytest.importorskip("triton.knobs")
    import_vllm()
    assert knobs.language.fp32_default == "ieee"


@pytest.mark.parametrize(
    ("family", "dtype", "compiles", "named"),
    [
        (100, torch.bfloat16, False, "FLASH_ATTN"),
        (100, torch.bfloat16, True, None),
        (100, torch.float32, False, None),
        (90, torch.bfloat16, False, None),
    ],
)
def test_an_attention_that_would_be_compiled_is_left_out_where_it_cannot_be(
    family: int, dtype: torch.dtype, compiles: bool, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_device_capability_family", lambda *asked: asked[-1] == family)
    monkeypatch.setattr("vllm.utils.flashinfer.has_flashinfer", lambda: compiles)
    settings = VllmSettings(device="cuda", dtype=dtype, max_model_len=256)
    assert settings.engine_arguments(MODELS / "tiny-student").get("attention_backend") == named


@pytest.mark.usefixtures("made")
def test_heads_that_gpus_cannot_share_are_refused() -> None:
    with pytest.raises(SpecError, match="tensor_parallel_size = 2: vLLM divides the 3 attention heads of the student"):
        arguments(World(), sampling=APART)


def test_too_few_gpus_are_told() -> None:
    with pytest.raises(DeviceUnavailableError, match="need 6 GPUs, but 5 are visible"):
        sampler_devices(SamplingConfig.model_validate(APART), list("01234"), local_rank=1, num_local=2)


def test_devices_of_the_samplers_are_refused_and_memory_ignored_on_a_cpu(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=8, heldout=4)
    with pytest.raises(SpecError, match=r"sampling\.placement = separate: only vLLM on GPUs supports it, .* on cpu"):
        distil(
            parse_config(spec(data, sampling={"max_prompt_tokens": 64, "max_new_tokens": 96, **APART})), tmp_path / "a"
        )
    sampling = {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 8, "gpu_memory_utilization": 0.4}
    distil(parse_config(spec(data, sampling=sampling)), tmp_path / "b")
    ignored = [event for event in events(tmp_path / "b", "notice") if event["code"] == "setting_ignored"]
    assert "sampling.gpu_memory_utilization is ignored" in ignored[0]["message"]


class ScriptedEngine:
    """Writes down what is asked of a sleeping and waking engine, which only a GPU has."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **options: self.calls.append(f"{name}{options or ''}")


def resting_generator(engine: ScriptedEngine, *, sleep_level: int) -> VllmGenerator:
    generator = object.__new__(VllmGenerator)
    vars(generator).update(_engine=engine, _sleep_level=sleep_level, _is_asleep=False, _on_cpu=False, _adapter=None)
    vars(generator).update(_weights_folder=MODELS / "tiny-teacher")
    return generator


def test_an_engine_rests_once_and_wakes_before_it_gets_new_weights() -> None:
    engine = ScriptedEngine()
    generator = resting_generator(engine, sleep_level=1)
    generator.sleep()
    generator.sleep()
    generator.load_weights(MODELS / "tiny-student")
    generator.load_weights(MODELS / "tiny-student")
    names = [call.split("{")[0] for call in engine.calls]
    assert engine.calls[1] == "sleep{'level': 1}"
    load = ["collective_rpc", "reset_prefix_cache"]
    assert names == ["reset_prefix_cache", "sleep", "wake_up", *load, *load]


def test_an_engine_that_wakes_finds_what_the_trainer_has_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps a GPU's freed memory for its own process; the engine takes what it needs past torch."""
    engine = ScriptedEngine()
    monkeypatch.setattr(torch.cuda, "empty_cache", engine.empty_cache)
    generator = resting_generator(engine, sleep_level=1)
    generator.sleep()
    generator.load_weights(MODELS / "tiny-student")
    assert engine.calls[2:4] == ["empty_cache", "wake_up"]


def test_an_engine_that_cannot_rest_is_left_alone() -> None:
    engine = ScriptedEngine()
    resting_generator(engine, sleep_level=0).sleep()
    assert engine.calls == []


def test_an_engine_that_dropped_its_weights_loads_them_again_and_each_only_once() -> None:
    engine = ScriptedEngine()
    generator = resting_generator(engine, sleep_level=2)
    generator.sleep()
    generator._wake()
    load = f"collective_rpc{{'kwargs': {{'weights_path': '{MODELS / 'tiny-teacher'}'}}}}"
    woken = ["wake_up{'tags': ['weights']}", load, "reset_prefix_cache", "wake_up{'tags': ['kv_cache']}"]
    assert engine.calls == ["reset_prefix_cache", "sleep{'level': 2}", *woken]
    engine.calls.clear()
    generator.sleep()
    generator.load_weights(MODELS / "tiny-student")
    assert engine.calls[2:] == [call.replace("tiny-teacher", "tiny-student") for call in woken]


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_own_processes() -> None:
    """On the CPU, where an engine in separate processes must return what one in ours returns."""
    pytest.importorskip("vllm", exc_type=ImportError)
    requests = [GenerationRequest((3, 4, 5, 6), seed) for seed in range(3)]
    sampling = SamplingSettings(0.6, 0.95, 20, 16, (1,))
    settings = VllmSettings(dtype=torch.float32, max_model_len=256)
    ours = VllmGenerator(MODELS / "tiny-student", settings)
    own = VllmGenerator(MODELS / "tiny-student", replace(settings, visible_devices=["0"]))
    try:
        assert own.generate(requests, sampling) == ours.generate(requests, sampling)
        for generator in (ours, own):
            generator.load_weights(MODELS / "tiny-teacher")
        assert own.generate(requests, sampling) == ours.generate(requests, sampling)
    finally:
        own.close()
        ours.close()


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_ctrl_c_ends_no_process_of_an_engine_and_its_death_is_named() -> None:
    """A terminal sends SIGINT to every process of the run, and ours continues to its next boundary."""
    pytest.importorskip("vllm", exc_type=ImportError)
    requests = [GenerationRequest((3, 4, 5, 6), seed) for seed in range(3)]
    sampling = SamplingSettings(0.6, 0.95, 20, 16, (1,))
    settings = VllmSettings(dtype=torch.float32, max_model_len=256, visible_devices=["0"])
    engine = VllmGenerator(MODELS / "tiny-student", settings)
    workers = [worker.proc.pid for worker in engine._engine.model_executor.workers]
    try:
        completions = engine.generate(requests, sampling)
        for pid in workers:
            os.kill(pid, signal.SIGINT)
        assert engine.generate(requests, sampling) == completions
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RuntimeError) as died:
            engine.generate(requests, sampling)
        assert failure_code(died.value) == "gpu_fault", died.value
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_why_an_engine_did_not_start_is_named(tmp_path: Path) -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "tiny-student", folder)
    save_file({"unknown": torch.zeros(2)}, folder / "model.safetensors")
    command = [sys.executable, "-c", ENGINE_THAT_FAILS, str(folder), str(tmp_path)]
    with (tmp_path / "engine.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, timeout=300, check=True)
    (failed,) = events(tmp_path / "run", "failed")
    assert failed["code"] == "gpu_fault"
    assert failed["message"].startswith("a process of vLLM ended: ValueError: There is no module"), failed["message"]


ENGINE_THAT_FAILS = """
import sys, torch
from pathlib import Path
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings
from worker.engine_child import report_failure
try:
    settings = VllmSettings(dtype=torch.float32, max_model_len=256, visible_devices=["0"])
    VllmGenerator(Path(sys.argv[1]), settings)
except Exception as error:
    report_failure(Path(sys.argv[2]) / "run", error)
"""
ENGINE_APART = """
import sys, time, torch
from pathlib import Path
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings
from trd_engine.generation.vllm.residence import GIB
settings = VllmSettings(dtype=torch.float32, max_model_len=256, visible_devices=["0"])
engine = VllmGenerator(Path(sys.argv[1]), settings)
print("ready", flush=True)
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_no_process_of_an_engine_outlives_a_trainer_that_is_killed() -> None:
    """It would keep its GPU from the run that continues. vLLM's workers watch a pipe that their parent holds open."""
    pytest.importorskip("vllm", exc_type=ImportError)
    command = [sys.executable, "-c", ENGINE_APART, str(MODELS / "tiny-student")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        try:
            assert trainer.stdout is not None
            assert any(line == "ready\n" for line in trainer.stdout)
            workers = children_of(trainer.pid)
        finally:
            trainer.kill()
    assert workers
    for pid in workers:
        eventually(lambda pid=pid: not process_exists(pid), seconds=60)  # type: ignore[misc]


def children_of(pid: int) -> list[int]:
    """Return the processes that it has started and that still run."""
    stats = {int(path.parent.name): _read(path) for path in Path("/proc").glob("[0-9]*/stat")}
    return [child for child, stat in stats.items() if stat.rpartition(")")[2].split()[1:2] == [str(pid)]]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # gone since it was listed
        return ""
