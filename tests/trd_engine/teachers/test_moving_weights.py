"""A student's own teacher that follows it: averaged or taken over now and then, and exactly so after a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.trd_engine.tiny_runs import MODELS, events, metric, spec, write_data
from trd_engine.config import LoraConfig, RunConfig, TeacherUpdateConfig, parse_config
from trd_engine.models.loading import load_model, load_tokenizer
from trd_engine.models.lora import TEACHER_ADAPTER, add_adapter, add_teacher_adapter, answering_with
from trd_engine.runtime.errors import CheckpointCorruptError
from trd_engine.teachers.moving_weights import TEACHER_WEIGHTS, TeacherUpdate
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.loop import distil
from trd_engine.training.model_setup import load_models

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
EMA = {"kind": "ema", "decay": 0.7}
PERIODIC = {"kind": "periodic", "every_steps": 2}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=24)


def own_teacher(data: Path, **changes: Any) -> RunConfig:
    """Return the spec of a student that refines and teaches itself: two rounds of two steps."""
    base: dict[str, Any] = {
        "teacher": None,
        "rounds": 2,
        "evaluation": {"holdout": 0.0},
        "diagnosis": {"num_trajectories": 0},
        "checkpoints": {"every_steps": 1, "keep": 9},
        "optim": {"learning_rate": 3e-3, "batch_size": 6},
    }
    return parse_config(spec(data, **{**base, **changes}))


@pytest.fixture(scope="module")
def whole_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Any], Path]:
    """Return the output of a run that nothing stopped, by `lora` and `teacher_update`; each is made once."""
    made: dict[str, Path] = {}

    def run(lora: dict[str, Any] | None, update: dict[str, Any]) -> Path:
        key = json.dumps([lora, update])
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            distil(own_teacher(data, lora=lora, teacher_update=update), made[key])
        return made[key]

    return run


def teacher_of(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folder(out, step) / "state" / f"{TEACHER_WEIGHTS}.safetensors")


def student_of(out: Path, step: int, names: list[str]) -> dict[str, torch.Tensor]:
    """Return the student's weights under the teacher's names."""
    folder = checkpoint_folder(out, step)
    if (folder / "adapter").exists():
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        return {name: weights[name.replace(f".{TEACHER_ADAPTER}.", ".")] for name in names}
    weights = load_file(folder / "model" / "model.safetensors")
    return {name: weights[name] for name in names if name in weights}


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_an_averaged_teacher_is_the_average_of_the_steps_before(
    whole_run: Callable[[Any, Any], Path], lora: dict[str, Any] | None
) -> None:
    out = whole_run(lora, EMA)
    expected = teacher_of(out, 0)
    for step in (1, 2, 3, 4):
        student = student_of(out, step, list(expected))
        expected = {name: 0.7 * expected[name].double() + 0.3 * student[name].double() for name in student}
        found = teacher_of(out, step)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name].double(), tensor, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(tensor, teacher_of(out, 0)[name]) for name, tensor in found.items())


def test_a_periodic_teacher_is_the_student_of_that_step(whole_run: Callable[[Any, Any], Path]) -> None:
    out = whole_run(LORA, PERIODIC)
    for step, taken_from in ((1, 0), (2, 2), (3, 2), (4, 4)):
        teacher = teacher_of(out, step)
        student = student_of(out, taken_from, list(teacher))
        assert all(torch.equal(teacher[name], student[name]) for name in teacher), step


@pytest.mark.parametrize(
    ("lora", "update"), [(LORA, EMA), (None, EMA), (LORA, PERIODIC)], ids=["lora-ema", "full-ema", "lora-periodic"]
)
def test_a_run_with_a_moving_teacher_resumes_bitwise(
    data: Path,
    tmp_path: Path,
    whole_run: Callable[[Any, Any], Path],
    lora: dict[str, Any] | None,
    update: dict[str, Any],
) -> None:
    whole = whole_run(lora, update)
    distil(own_teacher(data, lora=lora, teacher_update=update), tmp_path, resume_from=checkpoint_folder(whole, 1))
    model = load_file(checkpoint_folder(whole, 4) / "model" / "model.safetensors")
    again = load_file(checkpoint_folder(tmp_path, 4) / "model" / "model.safetensors")
    assert all(torch.equal(model[name], again[name]) for name in model)
    teacher, teacher_again = teacher_of(whole, 4), teacher_of(tmp_path, 4)
    assert all(torch.equal(teacher[name], teacher_again[name]) for name in teacher)


def test_the_teachers_weights_of_the_moment_refine(data: Path, tmp_path: Path) -> None:
    """The first round's refinements are those of a frozen teacher, and the second's are not."""
    frozen, moving = tmp_path / "frozen", tmp_path / "moving"
    longer = {"max_prompt_tokens": 192, "max_new_tokens": 24}
    distil(own_teacher(data, lora=None, refine=longer), frozen)
    update = {"kind": "periodic", "every_steps": 1}
    distil(own_teacher(data, lora=None, refine=longer, teacher_update=update), moving)
    rounds = [[_lines(out, number) for out in (frozen, moving)] for number in (0, 1)]
    assert rounds[0][0] == rounds[0][1]
    assert rounds[1][0] != rounds[1][1]
    assert not (checkpoint_folder(frozen, 4) / "state" / f"{TEACHER_WEIGHTS}.safetensors").exists()


def _lines(out: Path, number: int) -> str:
    return (out / "rounds" / f"{number:04d}" / "trajectories.jsonl").read_text(encoding="utf-8")


def test_a_second_adapter_is_no_second_copy_and_is_never_trained_or_exported(data: Path, tmp_path: Path) -> None:
    base = load_model(str(MODELS / "tiny-student"), dtype=torch.float32, device=CPU)
    num_base = sum(p.numel() for p in base.parameters())
    model = add_adapter(base, LoraConfig(rank=4, alpha=8), seed=0)
    num_adapter = sum(p.numel() for p in model.parameters()) - num_base
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    add_teacher_adapter(model)
    assert sum(p.numel() for p in model.parameters()) == num_base + 2 * num_adapter
    with answering_with(model, TEACHER_ADAPTER):
        pass
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
    distil(own_teacher(data, lora=LORA, teacher_update=EMA, rounds=1, optim={"batch_size": 24}), tmp_path)
    folder = checkpoint_folder(tmp_path, 1)
    assert not (folder / "adapter" / TEACHER_ADAPTER).exists()
    assert not any(TEACHER_ADAPTER in name for name in load_file(folder / "model" / "model.safetensors"))
    assert events(tmp_path, "finished")


def test_another_models_state_is_refused(tmp_path: Path) -> None:
    config = TeacherUpdateConfig(kind="ema")
    teacher, student = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    update = TeacherUpdate.of(config, teacher, student)
    assert update is not None
    update.write(tmp_path)
    other = TeacherUpdate(config, {"another": (teacher.weight, student.weight)})
    with pytest.raises(CheckpointCorruptError, match="teacher's weights"):
        other.restore(tmp_path)


def test_a_copy_in_lower_precision(data: Path, tmp_path: Path) -> None:
    config = own_teacher(data, lora=None, rounds=1, teacher_precision="bf16")
    models = load_models(config, load_tokenizer(config.student))
    assert {p.dtype for p in models.teacher.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in models.student.parameters()} == {torch.float32}
    distil(config, tmp_path / "bf16")
    distil(own_teacher(data, lora=None, rounds=1), tmp_path / "fp32")
    coarse, fine = metric(tmp_path / "bf16", "loss"), metric(tmp_path / "fp32", "loss")
    assert coarse != fine
    assert coarse == pytest.approx(fine, rel=0.5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"teacher_update": EMA, "teacher": str(MODELS / "tiny-teacher")}, "teaches itself"),
        ({"teacher_update": EMA, "lora": None, "teacher_precision": "bf16"}, "too coarse"),
        ({"lora": LORA, "teacher_precision": "bf16"}, "has no copy; leave it out"),
    ],
)
def test_what_cannot_be_is_refused(data: Path, changes: dict[str, Any], reason: str) -> None:
    document = own_teacher(data).model_dump()
    with pytest.raises(ValidationError, match=reason):
        RunConfig.model_validate({**document, **changes})
