"""The formula of docs/estimate.md, against the real models' weights and against sums written out here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from contract.job_spec import JobSpec
from service.jobs.memory import DEFAULT_MICRO_BATCH_TOKENS, LOSS_CHUNK_BYTES, memory
from service.models.shape import ModelShape, read_shape
from trd_engine.distillation import batching
from trd_engine.distillation.losses import linear_divergence as fused_loss

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


def test_the_constants_are_the_engines() -> None:
    assert DEFAULT_MICRO_BATCH_TOKENS == batching.DEFAULT_MICRO_BATCH_TOKENS
    assert LOSS_CHUNK_BYTES == fused_loss.CHUNK_BYTES_ACCELERATOR


def test_lora_trains_the_adapter_alone() -> None:
    found = memory(spec(), SHAPE, SHAPE)
    assert SHAPE.num_parameters == NUM_PARAMETERS
    assert found.student_bytes == 2 * NUM_PARAMETERS + 4 * ADAPTER
    assert found.teacher_bytes == 2 * NUM_PARAMETERS
    assert (found.gradient_bytes, found.optimizer_bytes) == (4 * ADAPTER, 8 * ADAPTER)
    tokens = 3 * 40  # a batch of three longest sequences
    assert found.activation_bytes == tokens * 2 * (2 * 8 + 6 * 8 + 5 * 8 + 4 * 4 + 4 * 16)
    assert found.loss_bytes == tokens * (32 * 4 + 8 * 2)
    assert found.sampler_bytes == 2 * 2 * 4 * 40 * 2, "transformers borrows the weights; one sequence's keys and values"
    assert found.total_bytes == sum(getattr(found, name) for name in vars(found) if name != "total_bytes")


def test_full_fine_tuning_trains_every_weight_and_devices_divide_it() -> None:
    alone, divided = (memory(spec(lora=None, devices=num), SHAPE, SHAPE) for num in (1, 4))
    assert alone.student_bytes == 6 * NUM_PARAMETERS
    assert alone.optimizer_bytes == 8 * NUM_PARAMETERS
    assert divided.student_bytes == alone.student_bytes // 4
    assert divided.optimizer_bytes == alone.optimizer_bytes // 4
    assert divided.sampler_bytes == alone.sampler_bytes + 2 * NUM_PARAMETERS, "divided weights cannot be borrowed"


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
    assert memory(spec(mode="opsd", teacher=None, **changes), SHAPE, None).teacher_bytes == num_bytes


def test_a_served_teacher_takes_nothing_here() -> None:
    assert memory(spec(mode="trd", teacher={"endpoint": "e"}), SHAPE, None).teacher_bytes == 0


def test_without_checkpointing_all_layers_are_kept() -> None:
    optim = {"batch_size": 3, "gradient_checkpointing": False}
    values = 6 * 8 + 5 * 8 + 4 * 4 + 4 * 16
    assert memory(spec(optim=optim), SHAPE, SHAPE).activation_bytes == 120 * 2 * 2 * values


def test_a_micro_batch_holds_its_budget_but_one_sequence_at_least() -> None:
    small, large = (
        memory(spec(optim={"batch_size": 100, "micro_batch_tokens": num}), SHAPE, SHAPE) for num in (1, 400)
    )
    assert large.activation_bytes == 10 * small.activation_bytes
