"""The doctor passes on a sound machine, and finds the faults that are planted here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trd_engine.distillation.losses import row_kernels
from trd_engine.doctor import engine_checks, machine_checks, report
from trd_engine.doctor.findings import FailedError, Finding, Machine, NotTriedError
from trd_engine.evaluation.sampler_gap import MAX_MEAN_GAP
from trd_engine.generation import choice
from trd_engine.generation.weight_sync import ServedWeights
from trd_engine.runtime import hardware
from trd_engine.runtime.errors import SamplerDriftError
from trd_engine.types import Verdict

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(CPU, tmp_path)


def test_quick_checks_pass_or_say_why_they_were_not_tried(tmp_path: Path) -> None:
    findings = {finding.check: finding for finding in report.examine(tmp_path, quick=True)}
    assert list(findings) == list(report.QUICK_CHECKS)
    assert {f.status for f in findings.values()} == {"pass", "not tried"}
    assert findings["GPU health"] == Finding("GPU health", "not tried", "there is no GPU here")
    assert f"torch {torch.__version__}" in findings["device"].message


def test_the_gpus_are_counted_with_the_largest_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = SimpleNamespace(name="NVIDIA L4", total_memory=22 * 2**30, major=8)
    gpus = [first, SimpleNamespace(name="X", total_memory=2**30, major=7)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpus[getattr(device, "index", device)])
    found = machine_checks.check_device_kind(Machine(torch.device("cuda", 0), tmp_path))
    assert (found.message, found.figures) == ("l4", {"num_devices": 2, "device_bytes": 22 * 2**30})
    assert [machine_checks.local_hardware(torch.device("cuda", n)).has_bf16 for n in (0, 1)] == [True, False]
    assert not machine_checks.check_device_kind(Machine(CPU, tmp_path)).figures


@pytest.mark.parametrize("name", ["loss", "packing", "verifier", "out of memory"])
def test_the_engine_passes_its_checks(name: str, machine: Machine) -> None:
    assert report.slow_checks()[name](machine)


def test_a_failure_is_a_finding_with_what_to_do_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(_: Machine) -> str:
        raise FailedError("the disk is full", "free some")

    def broken(_: Machine) -> str:
        raise KeyError("surprise")

    monkeypatch.setattr(report, "QUICK_CHECKS", {"disk": failing, "other": broken})
    assert report.main(tmp_path, None, quick=True, as_json=True) == 1
    disk, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert (disk["status"], disk["message"], disk["remedy"]) == ("fail", "the disk is full", "free some")
    assert (other["status"], other["message"]) == ("fail", "KeyError: 'surprise'")
    assert report.main(tmp_path, None, quick=True, as_json=False) == 1
    assert "what to do: free some" in capsys.readouterr().out


def test_a_gpu_that_does_not_work_is_the_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(hardware, "_DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (finding,) = report.examine(tmp_path)
    assert (finding.check, finding.status) == ("device", "fail")
    assert "driver" in finding.message


def test_a_spec_is_checked_against_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "slow_checks", lambda: {"spec": engine_checks.check_spec})
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"mode": "opd", "student": "/nowhere", "teacher": "/nowhere", "dataset": {"path": "x"}}))
    findings = [f for f in report.examine(tmp_path, spec) if f.check in ("spec", "device")]
    assert [(f.check, f.status) for f in findings] == [("device", "pass"), ("spec", "fail")]
    assert "/nowhere" in findings[1].message
    spec.write_text("{}")
    (finding,) = report.examine(tmp_path, spec)
    assert (finding.check, finding.status) == ("spec", "fail")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("GPU-1a, 0, 0, 12\nGPU-2b, 1, 3, 10\n", "GPU 1 had 3 uncorrected ECC errors"),
        ("GPU-1a, 0, [N/A], 12000\n", "12000 MiB of GPU 0 are in use"),
        ("GPU-1a, 0, [N/A], 12\n", None),
        ("GPU-3c, 0, 0, 70000\nGPU-1a, 1, 0, 12\n", None),
    ],
    ids=["ECC", "in use", "free", "another that is hidden is in use"],
)
def test_ecc_errors_and_other_processes_are_found(
    output: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_program(tmp_path / "nvidia-smi", f"cat <<'END'\n{output}END\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    gpus = [SimpleNamespace(uuid="1a"), SimpleNamespace(uuid="2b")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    if message is None:
        assert "no uncorrected ECC errors" in machine_checks.check_gpu_health(Machine(GPU, tmp_path))
        return
    with pytest.raises(FailedError, match=message):
        machine_checks.check_gpu_health(Machine(GPU, tmp_path))


def test_a_part_of_a_gpu_is_not_judged_by_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_program(tmp_path / "nvidia-smi", "echo 'GPU-3c, 0, 0, 70000'\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="4d"))
    with pytest.raises(NotTriedError, match="MIG"):
        machine_checks.check_gpu_health(Machine(GPU, tmp_path))


XID = "[  812.5] NVRM: Xid (PCI:0000:1b:00): {}, pid=4711, name=python, a text"


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ([XID.format(31), XID.format(79), "eth0: link up"], "Xid 79"),
        ([XID.format(48), XID.format(95)], "Xid 48, 95"),
        ([XID.format(13), XID.format(43), "NVRM: loading driver"], None),
        ([], None),
    ],
)
def test_errors_of_the_driver_are_found_in_the_kernels_log(
    log: list[str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "".join(f"echo '{line}'\n" for line in log)
    _write_program(tmp_path / "dmesg", script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if message is None:
        assert "no Xid" in machine_checks.check_kernel_log(Machine(GPU, tmp_path))
    else:
        with pytest.raises(FailedError, match=message):
            machine_checks.check_kernel_log(Machine(GPU, tmp_path))


def test_a_kernel_log_that_may_not_be_read_was_not_tried(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotTriedError, match="no GPU"):
        machine_checks.check_kernel_log(machine)
    _write_program(tmp_path / "dmesg", "exit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(NotTriedError, match="may not be read"):
        machine_checks.check_kernel_log(Machine(GPU, tmp_path))


@pytest.mark.parametrize(
    ("answer", "is_good"), [("echo False True", True), ("echo True True", False), ("echo; exit 1", False)]
)
def test_a_device_assert_that_is_misread_is_found(
    answer: str, is_good: bool, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotTriedError):
        engine_checks.check_device_assert(machine)
    _write_program(tmp_path / "python", f"{answer}\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    if is_good:
        assert "not taken for memory" in engine_checks.check_device_assert(Machine(GPU, tmp_path))
    else:
        with pytest.raises(FailedError):
            engine_checks.check_device_assert(Machine(GPU, tmp_path))


def _write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
    path.chmod(0o755)


def test_a_missing_compiler_and_a_full_disk_are_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotTriedError):
        machine_checks.check_compiler(machine)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FailedError, match="no C compiler"):
        machine_checks.check_compiler(Machine(GPU, machine.folder))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20, total=2**40))
    with pytest.raises(FailedError, match="GiB free"):
        machine_checks.check_disk(machine)


def test_a_cache_that_cannot_be_written_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotTriedError):
        machine_checks.check_caches(machine)
    for name in machine_checks._CACHES:
        monkeypatch.setenv(name, str(machine.folder / "caches" / name))
    on_gpu = Machine(GPU, machine.folder)
    assert "caches/TRITON_CACHE_DIR" in machine_checks.check_caches(on_gpu)
    assert list(machine.folder.iterdir()) == []
    (machine.folder / "caches").touch()
    with pytest.raises(FailedError, match=r"HF_HOME: .*/caches/HF_HOME cannot be written: Not a directory") as found:
        machine_checks.check_caches(on_gpu)
    assert found.value.remedy == "let the process write there, or set HF_HOME to another folder"


def test_kernels_that_do_not_run_on_a_gpu_are_found(machine: Machine) -> None:
    """Here there is none. The loss would be right, and slow."""
    with (
        pytest.warns(UserWarning, match="plain operations"),
        pytest.raises(FailedError, match="plain operations, because Triton does not run on cuda:0"),
    ):
        engine_checks.check_loss(Machine(GPU, machine.folder))
    row_kernels.kernel_fault.cache_clear()


def test_a_wrong_loss_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine_checks.linear_divergence

    def wrong(*arguments: Any, **options: Any) -> Any:
        loss, per_token = right(*arguments, **options)
        return loss * 1.001, per_token

    monkeypatch.setattr(engine_checks, "linear_divergence", wrong)
    with pytest.raises(FailedError, match="the loss differs from float64 by 1"):
        engine_checks.check_loss(machine)


def test_sequences_that_see_each_other_are_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine_checks.read_row
    monkeypatch.setattr(
        engine_checks, "read_row", lambda m, ids, places, lengths: right(m, ids.flip(1), places, lengths)
    )
    with pytest.raises(FailedError, match=r"packed rows: error .*, leak"):
        engine_checks.check_packing(machine)


def test_a_verifier_that_says_yes_to_all_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    task = SimpleNamespace(verify_many=lambda pairs: [Verdict(True, "fine")] * len(pairs))
    monkeypatch.setattr(engine_checks, "load_task", lambda name: task)
    with pytest.raises(FailedError, match=r"0\.5 and 0\.51 against 1/2: fine, fine"):
        engine_checks.check_verifier(machine)


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_sampling_a_step_and_the_sync_pass_and_a_sync_that_is_left_out_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one session, whose engines take long to start."""
    pytest.importorskip("vllm", exc_type=ImportError)
    with engine_checks._tiny_session(machine) as session:
        monkeypatch.setattr(engine_checks, "_tiny_session", lambda _: nullcontext(session))
        assert "nothing sleeps on a CPU" in engine_checks.check_run(machine)
        # The limit of a GPU; in bf16 the difference is the same.
        monkeypatch.setitem(MAX_MEAN_GAP, torch.float32, MAX_MEAN_GAP[torch.bfloat16])
        assert engine_checks.check_sync(machine).startswith("stale weights are found; after the sync")
        with monkeypatch.context() as planted:
            planted.setattr(engine_checks, "_SYNC_NOISE", 0.0)  # as if the gap were not measured
            with pytest.raises(FailedError, match="went unnoticed"):
                engine_checks.check_sync(machine)
        monkeypatch.setattr(ServedWeights, "student_changed", lambda self: None)
        with pytest.raises(SamplerDriftError):
            engine_checks.check_sync(machine)


def test_a_sampler_that_uses_the_trained_module_need_not_sleep(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU without vLLM, and on one without bf16."""
    monkeypatch.setattr(choice, "_obstacle", lambda *_: "vLLM is not installed")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**30))
    with engine_checks._tiny_session(machine) as session:
        assert "never sleeps" in engine_checks._freed_by_sleep(session, Machine(GPU, machine.folder))


@pytest.mark.slow
def test_the_links_between_processes_are_measured() -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    assert machine_checks.measure_all_reduce(launcher, "gloo", 2**20).startswith("2 processes: ")
    with pytest.raises(FailedError, match="the processes failed"):
        machine_checks.measure_all_reduce([*launcher[:-1], "--nproc-per-node=1"], "no-such-backend", 2**20)


@pytest.mark.slow
def test_processes_divide_a_model_and_put_it_together(machine: Machine) -> None:
    with pytest.raises(NotTriedError):
        engine_checks.check_sharding(machine)
    options = ["--standalone", "--local-addr=127.0.0.1"]
    assert engine_checks.run_divided(*options, num_devices=2).startswith("2 processes took a step, and put ")
    with pytest.raises(FailedError, match="the processes failed"):
        engine_checks.run_divided("--no-such-option", num_devices=2)


def test_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "client.cli", "doctor", "--quick", "--json", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["check"] for line in done.stdout.splitlines()] == list(report.QUICK_CHECKS)
