"""The estimate beside two tables of sizes and times that were worked out by hand from the sources of vLLM and torch.

No GPU has measured either. The tables' assumptions: an H100 with 79 GiB, rollouts of half their budget (335 million
tokens for 40,960 problems), passes of 16,384 tokens of either model, and files at 1 GB/s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contract.job_spec import JobSpec
from service.jobs.forecast import counts_of
from trd_estimate.hardware import GB, GIB, H100, HARDWARE, hardware_of, hardware_of_kind
from trd_estimate.memory import Models, phase_memory
from trd_estimate.phases import PhaseEstimate, estimate_phases, evaluation_share, shortfalls
from trd_estimate.shape import ModelShape

QWEN3 = {
    "1.7B": ModelShape(28, 2048, 6144, query_width=2048, key_width=1024, vocabulary=151_936, is_tied=True),
    "8B": ModelShape(36, 4096, 12_288, query_width=4096, key_width=1024, vocabulary=151_936, is_tied=False),
}
BODY: dict[str, Any] = {"mode": "trd", "student": "S", "teacher": "T", "dataset": "ds_1"}
PAPER = JobSpec.model_validate({**BODY, "devices": 8, "lora": None}).resolved()
EIGHT = Models(QWEN3["8B"], QWEN3["8B"])
NUM_PROBLEMS = 40_960  # 320 steps of 128


@pytest.mark.parametrize(
    ("student", "num_devices", "changes", "free", "peak"),
    [
        ("1.7B", 1, {}, 59, 31),
        ("8B", 1, {}, 45, 51),
        ("8B", 8, {}, 74, 26),
        ("8B", 8, {"lora": None}, 63, 46),
    ],
)
def test_memory_in_gb_of_a_gpu(
    student: str, num_devices: int, changes: dict[str, Any], free: float, peak: float
) -> None:
    body = {**BODY, "devices": num_devices, "optim": {"micro_batch_tokens": 16_384}, **changes}
    spec, models = JobSpec.model_validate(body).resolved(), Models(QWEN3[student], QWEN3["8B"])
    found = phase_memory(spec, models, H100)
    for phase in ("rollout", "refining"):
        awake = sum(found[phase][name] for name in ("engine_weights", "engine_workspace", "kv_cache"))
        assert awake / GB == pytest.approx(free, rel=0.1), "free for the engine that is awake"
    assert sum(found["training"].values()) / GB == pytest.approx(peak, rel=0.1)
    assert shortfalls(spec, models, H100, estimate_phases(spec, models, None, H100)) == []


def paper_run(num_heldout: int, **changes: Any) -> dict[str, PhaseEstimate]:
    spec = PAPER.model_copy(update=changes)
    counts = counts_of(spec, NUM_PROBLEMS + num_heldout, None)
    assert counts is not None
    assert (counts.num_steps, counts.num_heldout) == (320, num_heldout)
    return {one.phase: one for one in estimate_phases(spec, EIGHT, counts, H100)}


def test_the_papers_run_in_hours() -> None:
    found = paper_run(64)
    hours = {phase: (one.seconds or 0) / 3600 for phase, one in found.items()}
    assert found["rollout"].num_tokens == pytest.approx(335e6, rel=0.01)
    expected = {"preparing": 0.1, "rollout": 5.4, "refining": 1.9, "saving": 0.3, "training": 1.1}
    assert {phase: hours[phase] for phase in expected} == pytest.approx(expected, rel=0.1)
    assert sum(hours.values()) - hours["evaluating"] == pytest.approx(8.8, rel=0.1)


def test_the_default_evaluation_takes_at_most_5_percent_of_the_papers_run() -> None:
    share = evaluation_share(paper_run(64).values())
    assert share is not None
    assert share <= 0.05
    evaluation = PAPER.evaluation.model_copy(update={"holdout": 806 / (NUM_PROBLEMS + 806)})
    asked_for = paper_run(806, evaluation=evaluation)
    assert (asked_for["evaluating"].seconds or 0) / 3600 == pytest.approx(3.4, rel=0.1), "2 % of the problems"


def test_a_run_that_does_not_fit_says_what_would() -> None:
    spec = JobSpec.model_validate({**BODY, "lora": None}).resolved()
    full, rollout, refining = shortfalls(spec, EIGHT, H100, estimate_phases(spec, EIGHT, None, H100))
    assert full.startswith("memory: training takes 1")
    assert "use LoRA" in rollout
    assert "refine.max_prompt_tokens + refine.max_new_tokens = 34816" in refining
    body = {**BODY, "sampling": {"max_new_tokens": 400_000}}
    spec = JobSpec.model_validate(body).resolved()
    (message,) = [
        text
        for text in shortfalls(spec, EIGHT, H100, estimate_phases(spec, EIGHT, None, H100))
        if "sampling." in text and "fit" in text
    ]
    fits = int(message.partition("at most ")[2].partition(" ")[0])
    body["sampling"] = {"max_new_tokens": fits - 2048}
    spec = JobSpec.model_validate(body).resolved()
    left = shortfalls(spec, EIGHT, H100, estimate_phases(spec, EIGHT, None, H100))
    assert not any("at most" in text for text in left)


@pytest.mark.parametrize(
    ("name", "memory", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "h100"),
        ("NVIDIA H100 PCIe", 79.2, "h100-pcie"),
        ("NVIDIA H100 NVL", 93.1, "h100-nvl"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "a100-40gb"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA RTX 6000 Ada Generation", 47.4, "rtx-6000-ada"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx-4090"),
        ("Tesla T4", 14.6, "t4"),
    ],
)
def test_a_gpu_is_recognised_by_the_drivers_name_and_has_its_own_memory(name: str, memory: float, kind: str) -> None:
    found = hardware_of(name, int(memory * GIB))
    assert found == replace(HARDWARE[kind], memory_bytes=int(memory * GIB))
    assert hardware_of_kind(name) == hardware_of_kind(kind.upper()) == HARDWARE[kind]


@pytest.mark.parametrize(
    ("name", "memory", "speed_of"),
    [
        ("NVIDIA Something New", 79.0, "a100-80gb"),
        ("", 8.0, "l4"),
        ("AMD Instinct MI300X", 191.7, "b200"),
        ("NVIDIA GH200 480GB", 94.5, "h100-nvl"),  # 480 GB are the processor's
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6, "l4"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.5, "l4"),
        ("H100", 20.0, "l4"),
        ("NVIDIA A100-SXM-64GB", 63.4, "a100-80gb"),
        ("cpu", 24.0, "rtx-3090"),
    ],
)
def test_another_gpu_has_its_own_memory_and_an_assumed_speed(name: str, memory: float, speed_of: str) -> None:
    found, assumed = hardware_of(name, int(memory * GIB)), HARDWARE[speed_of]
    assert (found.kind, found.memory_bytes) == (f"gpu-{memory:.1f}gib", int(memory * GIB))
    assert (found.bytes_per_second, found.flops) == (assumed.bytes_per_second, assumed.flops)
    assert f"{speed_of}, an assumption" in found.speed_source
    assert hardware_of_kind(found.kind).speed_of == speed_of


@pytest.mark.parametrize(
    "kind", ["", "gpu", "gpu-0gb", "gpu--4gb", "gpu-24", "gpu-nangb", "h1000", "rtx", "H100 MIG", "é\n"]
)
def test_a_kind_that_is_not_known_is_refused_with_the_kinds_that_are(kind: str) -> None:
    with pytest.raises(ValueError, match=r"is not known: use one of cpu, h100, .*, or gpu-24gb") as found:
        hardware_of_kind(kind)
    assert repr(kind) in str(found.value)
