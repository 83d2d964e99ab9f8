"""The formula of docs/estimate.md, against the real models' weights and against sums written out here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from contract.job_spec import JobSpec
from service.models.service import read_shape
from trd_engine.distillation.losses import linear_divergence as fused_loss
from trd_estimate.hardware import CPU, GIB, H100, HARDWARE, Hardware
from trd_estimate.memory import (
    CONTEXT_BYTES,
    DEFAULT_PASS_TOKENS,
    LOSS_CHUNK_BYTES,
    MAX_TEACHER_PASS_TOKENS,
    RESERVE_BYTES,
    SLEEPING_BYTES,
    WORKSPACE_BYTES,
    Models,
    checkpoint_bytes,
    default_pass_tokens,
    host_bytes,
    least_bytes,
    phase_memory,
    takes_turns,
    value_bytes,
)
from trd_estimate.shape import ModelShape

MODELS = Path(__file__).parents[2] / "testbed" / "models"
SHAPE = ModelShape(2, 8, 16, query_width=8, key_width=4, vocabulary=32, is_tied=True)
NUM_PARAMETERS = 2 * (2 * 8 * 12 + 3 * 8 * 16 + 2 * 8) + 32 * 8 + 8
ADAPTER = 2 * 3 * (16 + 12 + 12 + 16 + 24 + 24 + 24)


def spec(**changes: Any) -> JobSpec:
    body: dict[str, Any] = {
        "mode": "opd",
        "student": "S",
        "teacher": "T",
        "dataset": "ds_1",
        "sampling": {"max_prompt_tokens": 10, "max_new_tokens": 30, "engine": "transformers"},
        "refine": {"max_prompt_tokens": 50, "max_new_tokens": 20},
        "optim": {"batch_size": 3, "gradient_checkpointing": True},
        "lora": {"rank": 3},
        "precision": "bf16",
    }
    return JobSpec.model_validate({**body, **changes}).resolved()


@pytest.mark.parametrize("name", ["tiny-student", "tiny-teacher"])
def test_parameters_are_counted_as_the_weights_have_them(name: str) -> None:
    shape = read_shape(MODELS / name)
    assert shape is not None
    with safe_open(str(MODELS / name / "model.safetensors"), "np") as file:
        stored = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - no mapping
    assert shape.num_parameters == pytest.approx(stored, rel=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_size": "8"},
        {"num_experts": 4, "num_hidden_layers": 1, "hidden_size": 8},
    ],
)
def test_missing_configuration_values_are_not_guessed(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(tmp_path) is None


def test_experts_have_no_shape(tmp_path: Path) -> None:
    config = json.loads((MODELS / "tiny-student" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_experts": 4}))
    assert read_shape(tmp_path) is None


def training(spec: JobSpec, teacher: ModelShape | None = SHAPE, hardware: Hardware = CPU) -> dict[str, int]:
    return phase_memory(spec, Models(SHAPE, teacher), hardware)["training"]


def test_the_constants_are_the_engines() -> None:
    assert LOSS_CHUNK_BYTES == fused_loss.CHUNK_BYTES_ACCELERATOR


def test_a_gpu_without_bf16_holds_values_of_fp32() -> None:
    """At precision auto, which the engine resolves in the same way."""
    widths = [value_bytes(spec(precision="auto"), HARDWARE[kind]) for kind in ("h100", "t4", "cpu")]
    assert widths == [2, 4, 4]


def test_lora_in_fp32_is_sampled_by_transformers_on_a_gpu() -> None:
    """vLLM has no such kernels; the engine chooses alike, and transformers borrows the trained weights."""
    sampling = {"max_prompt_tokens": 10, "max_new_tokens": 30, "engine": "auto"}
    found = {
        (kind, is_lora): takes_turns(
            spec(precision="auto", sampling=sampling, lora={"rank": 3} if is_lora else None), HARDWARE[kind]
        )
        for kind in ("h100", "t4")
        for is_lora in (True, False)
    }
    assert [pair for pair, is_vllm in found.items() if not is_vllm] == [("t4", True)]
    body = {"precision": "auto", "sampling": sampling}
    held = phase_memory(spec(**body), Models(SHAPE, SHAPE), HARDWARE["t4"])["rollout"]
    assert held["engine_weights"] == 0
    assert "sleeping_engines" not in held


def test_lora_trains_the_adapter_alone() -> None:
    found = training(spec())
    assert SHAPE.num_parameters == NUM_PARAMETERS
    tokens = 3 * 40  # a batch of three longest sequences
    layer = 6 * 8 + 5 * 8 + 4 * 4 + 4 * 16
    assert found == {
        "student_weights": 2 * NUM_PARAMETERS + 4 * ADAPTER,
        "teacher_weights": 2 * NUM_PARAMETERS,
        "moments": 8 * ADAPTER,
        "gradients": 4 * ADAPTER,
        "activations": tokens * 2 * (2 * 8 + layer + 8),
        "loss": tokens * 32 * 4,
        # transformers borrows the weights; one sequence's keys and values
        "engine_weights": 0,
        "kv_cache": 2 * 2 * 4 * 40 * 2,
    }


def test_full_fine_tuning_trains_every_weight_and_devices_divide_it() -> None:
    alone, divided = (training(spec(lora=None, devices=num)) for num in (1, 4))
    assert alone["student_weights"] == 6 * NUM_PARAMETERS
    assert divided["student_weights"] == NUM_PARAMETERS, "FSDP casts a layer at a time, and keeps no cast copy"
    assert alone["moments"] == 8 * NUM_PARAMETERS == 4 * divided["moments"]
    assert divided["engine_weights"] == 2 * NUM_PARAMETERS, "divided weights cannot be borrowed"
    root = 32 * 8 + 8
    layer = (NUM_PARAMETERS - root) // 2
    # The teacher's head, two layers and the root; and the gradients of a layer and of the root.
    assert divided["complete_weights"] == 2 * (root + 2 * layer + root + layer + root)


@pytest.mark.parametrize(
    "changes", [{}, {"lora": None}, {"lora": None, "devices": 4}, {"mode": "opsd", "teacher": None}]
)
@pytest.mark.parametrize("hardware", [CPU, H100])
def test_the_least_memory_is_what_no_length_of_texts_changes(changes: dict[str, Any], hardware: Hardware) -> None:
    models = Models(SHAPE, SHAPE if changes.get("teacher", "T") else None)
    least = least_bytes(spec(**changes), models, hardware)
    held = ("student_weights", "teacher_weights", "moments", "gradients")
    for num in (8, 30):
        sampling = {"max_prompt_tokens": 10, "max_new_tokens": num, "engine": "transformers"}
        found = training(spec(**changes, sampling=sampling), models.teacher, hardware)
        assert least == sum(found[name] for name in held) < sum(found.values())


@pytest.mark.parametrize(
    ("changes", "num_bytes"),
    [
        ({"lora": {"rank": 3}}, 0),
        ({"lora": {"rank": 3}, "teacher_update": {"kind": "ema"}}, 4 * ADAPTER),
        ({"lora": None}, 2 * NUM_PARAMETERS),
        ({"lora": None, "teacher_update": {"kind": "ema"}}, 4 * NUM_PARAMETERS),
        ({"lora": None, "teacher_precision": "fp32"}, 4 * NUM_PARAMETERS),
    ],
)
def test_a_student_that_teaches_itself(changes: dict[str, Any], num_bytes: int) -> None:
    assert training(spec(mode="opsd", teacher=None, **changes), None)["teacher_weights"] == num_bytes


def test_a_served_teacher_takes_nothing_here() -> None:
    assert training(spec(mode="trd", teacher={"endpoint": "e"}), None)["teacher_weights"] == 0


def test_without_checkpointing_all_layers_are_kept() -> None:
    optim = {"batch_size": 3, "gradient_checkpointing": False}
    values = 6 * 8 + 5 * 8 + 4 * 4 + 4 * 16
    assert training(spec(optim=optim))["activations"] == 120 * 2 * (2 * values + 8)


def test_a_micro_batch_holds_its_budget_but_one_sequence_at_least() -> None:
    small, large = (training(spec(optim={"batch_size": 100, "micro_batch_tokens": num})) for num in (1, 400))
    assert large["activations"] == 10 * small["activations"]


def test_passes_of_student_and_teacher_have_their_own_tokens_by_what_memory_is_free() -> None:
    assert default_pass_tokens(100 * GIB, 500_000, 120_000) == (DEFAULT_PASS_TOKENS, MAX_TEACHER_PASS_TOKENS)
    assert default_pass_tokens(5 * 10**9, 500_000, 120_000) == (10_000, 41_666)
    assert default_pass_tokens(0, 500_000, 120_000) == (1, 1), "one sequence at a time"


def test_engines_take_turns_on_a_gpu() -> None:
    body: dict[str, Any] = {"mode": "trd", "sampling": {"max_prompt_tokens": 10, "max_new_tokens": 30}}
    found = phase_memory(spec(**body), Models(SHAPE, SHAPE), H100)
    for phase in ("rollout", "refining", "evaluating", "preparing"):
        memory = found[phase]
        assert (memory["engine_weights"], memory["engine_workspace"]) == (2 * NUM_PARAMETERS, WORKSPACE_BYTES)
        assert memory["sleeping_engines"] == SLEEPING_BYTES, "the other one"
        assert sum(memory.values()) == H100.memory_bytes, "keys and values take what is left"
    assert found["training"]["sleeping_engines"] == 2 * SLEEPING_BYTES
    assert "kv_cache" not in found["training"]
    assert found["saving"]["context"] == CONTEXT_BYTES + RESERVE_BYTES
    apart = spec(**body | {"sampling": {"placement": "separate"}})
    assert "engine_weights" not in phase_memory(apart, Models(SHAPE, SHAPE), H100)["rollout"]


def test_sleep_at_level_1_keeps_a_copy_of_the_weights_in_the_hosts_memory() -> None:
    models = Models(SHAPE, SHAPE)
    lora, full = (spec(mode="trd", sampling={}, lora=lora, devices=4) for lora in ({"rank": 3}, None))
    weights = 2 * NUM_PARAMETERS
    found = {phase: host_bytes(lora, models, H100, phase) for phase in ("rollout", "training", "saving")}
    assert found == {"rollout": 4 * weights, "training": 4 * 2 * weights, "saving": 4 * 2 * weights + weights}
    assert host_bytes(full, models, H100, "training") == 0, "they drop their weights and load them again"
    assert host_bytes(full, models, H100, "saving") == 4 * NUM_PARAMETERS, "put together in the main process"
    assert checkpoint_bytes(lora, models, H100) == 12 * ADAPTER + weights
    assert checkpoint_bytes(full, models, H100) == 12 * NUM_PARAMETERS
