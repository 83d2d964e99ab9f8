"""Training: the loss boundary, micro-batches against one batch, and exact resumption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from testbed import measure, train_models
from testbed.examples import draw_batch
from testbed.export import new_model
from testbed.recipes import STUDENT_GAP, TEACHER
from testbed.tokenizer import TOKEN_IDS
from testbed.train_models import TrainingRun, accumulate_gradients, main, micro_batches, train

SMOKE = dataclasses.replace(TEACHER, steps=6, tokens_per_step=300, warmup_steps=2)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score at the end of a training, which no test here reads, takes few tokens of models that end no answer."""
    monkeypatch.setattr(measure, "MAX_NEW_TOKENS", 8)


def _run(out: Path) -> TrainingRun:
    return TrainingRun(SMOKE, 3, out, out / ".work", checkpoint_every=4, evaluation_problems=2)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_models, "LOG_EVERY", 1)
    torch.set_num_threads(1)
    whole = train(_run(tmp_path / "whole")).state_dict()
    stopped = _run(tmp_path / "stopped")
    train(stopped, stop_before=3)
    # What a killed run leaves after its checkpoint is done again, and logged once.
    with stopped.log_file.open("a") as log:
        log.write(json.dumps({"step": 4, "loss": 0.0}) + "\n")
    resumed = train(stopped).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [_run(tmp_path / name).log_file.read_text() for name in ("whole", "stopped")]
    rows = [[json.loads(line) for line in log.splitlines()] for log in logs]
    assert [row["step"] for row in rows[1]] == list(range(6))
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(_run(tmp_path), stop_before=1)
    longer = dataclasses.replace(_run(tmp_path), recipe=dataclasses.replace(SMOKE, steps=7))
    with pytest.raises(ValueError, match="another recipe"):
        train(longer)


def test_micro_batches_give_the_gradient_of_the_whole_step() -> None:
    torch.manual_seed(0)
    model = new_model().double()
    examples = draw_batch(dataclasses.replace(TEACHER, tokens_per_step=1500), 0, 10)
    assert len(micro_batches(examples)) > 1
    loss = accumulate_gradients(model, examples)
    accumulated = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    trained = []
    for example in examples:
        ids = torch.tensor(example.token_ids)
        log_probs_TV = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for position in range(example.num_context, len(ids)):
            trained.append(-log_probs_TV[position - 1, ids[position]])
    reference = torch.stack(trained).mean()
    reference.backward()
    assert loss == pytest.approx(reference.item(), abs=1e-12)
    for ours, parameter in zip(accumulated, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, atol=1e-12, rtol=1e-9)


def test_the_command_exports_folders_that_load(tmp_path: Path) -> None:
    main(["tiny-student", "--out", str(tmp_path), "--smoke", "--seed", "5"])
    main(["tiny-student-slips", "--out", str(tmp_path), "--smoke", "--seed", "5"])
    for name in ("tiny-student", "tiny-student-slips"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert model.dtype == torch.float32
        assert AutoTokenizer.from_pretrained(tmp_path / name).encode("wait") == [TOKEN_IDS["wait"]]
        assert json.loads((tmp_path / name / "training.json").read_text())["seed"] == 5


def test_half_precision_is_of_the_stored_weights_alone(tmp_path: Path) -> None:
    main(["tiny-teacher", "--out", str(tmp_path), "--smoke"])
    main(["tiny-teacher-native", "--out", str(tmp_path), "--smoke"])
    trained = torch.load(tmp_path / ".work" / "tiny-teacher-native-seed0.pt", weights_only=True)["model"]
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny-teacher-native").state_dict()
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert all(torch.equal(weight.bfloat16(), stored[name]) for name, weight in trained.items())


def test_slips_start_from_the_student(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train that model first"):
        main(["tiny-student-slips", "--out", str(tmp_path), "--smoke"])


def test_the_curriculum_begins_with_short_problems() -> None:
    early, late = draw_batch(STUDENT_GAP, 0, 0), draw_batch(STUDENT_GAP, 0, 5000)
    assert max(len(e.token_ids) for e in early) < max(len(e.token_ids) for e in late)
