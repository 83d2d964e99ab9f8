"""What a run reports and writes, on the committed small models."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trd_engine.tiny_runs import MODELS, WHOLE_ANSWERS, events, metric, spec
from trd_engine.config import parse_config
from trd_engine.runtime.errors import SpecError
from trd_engine.training.checkpoints.checkpoint import checkpoint_draft, checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest
from trd_engine.training.loop import distil

pytestmark = pytest.mark.xdist_group("whole_run")  # of which there is one for both files, see conftest.py


def test_a_run_reports_all_it_does(whole: Path) -> None:
    assert [e["step"] for e in events(whole, "evaluation")] == [0, 4]
    for evaluation in events(whole, "evaluation"):
        assert list(evaluation["detail"]["pass_at"]) == ["1", "2"]
        assert evaluation["detail"]["pass_at"]["2"] == evaluation["pass_at_k"]
    assert [e["num"] for e in events(whole, "trajectories")] == [24, 24]
    phases = {e["phase"] for e in events(whole, "phase")}
    steps = [e for e in events(whole, "progress") if e["unit"] == "steps"]
    assert {e["phase"] for e in steps} == {"training"}
    assert phases == {"preparing", "rollout", "refining", "diagnosing", "training", "evaluating", "saving"}
    assert len(metric(whole, "loss")) == 4
    heldout = metric(whole, "heldout_forward_kl")
    assert heldout[-1] < heldout[0]
    assert any(e["eta_seconds"] is not None for e in events(whole, "progress"))
    (finished,) = events(whole, "finished")
    assert finished["step"] == 4


def test_the_teacher_corrects_rollouts(data: Path, tmp_path: Path) -> None:
    """Whole answers, which are longer than those of the other runs."""
    changes: dict[str, Any] = {"evaluation": {"holdout": 0.0}, "diagnosis": {"num_trajectories": 0}}
    changes["optim"] = {"batch_size": 48, "max_steps": 1}
    distil(parse_config(spec(data, **WHOLE_ANSWERS, **changes)), tmp_path)
    assert metric(tmp_path, "refined_accuracy")[0] > metric(tmp_path, "rollout_accuracy")[0] + 0.2


def test_every_answer_of_an_evaluation_is_kept(whole: Path) -> None:
    lines = (whole / "evaluations" / "step-00000004.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in lines]
    after = events(whole, "evaluation")[-1]
    assert len(answers) == after["num_problems"] * after["k"] == 32
    assert sum(answer["correct"] for answer in answers) / 32 == after["avg_at_k"]


def test_the_same_few_problems_are_answered_at_each_evaluation(whole: Path) -> None:
    first, last = events(whole, "probe_samples")
    assert (first["step"], last["step"]) == (0, 4)
    assert [s["problem_id"] for s in first["samples"]] == [s["problem_id"] for s in last["samples"]]
    assert [s["prompt"] for s in first["samples"]] == [s["prompt"] for s in last["samples"]]
    assert len(first["samples"]) == 4
    for event in (first, last):
        path = whole / "evaluations" / f"step-{event['step']:08d}.jsonl"
        answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [(a["problem_id"], a["text"], a["correct"]) for a in answers if a["sample"] == 0][:4]
        assert [(s["problem_id"], s["completion"], s["correct"]) for s in event["samples"]] == kept


def test_the_checkpoint_is_a_model_folder_that_says_what_it_is(whole: Path) -> None:
    folder = checkpoint_folder(whole, 4)
    manifest = verify_manifest(folder)
    assert manifest["formats"] == ["full"]
    assert manifest["versions"]["torch"] == torch.__version__
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.chat_template
    assert (folder / "model" / "trd_prompts.json").read_bytes() == (
        MODELS / "tiny-student" / "trd_prompts.json"
    ).read_bytes()
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    for fact in ("tiny-student", "tiny-teacher", "TRD", manifest["data_fingerprint"], "Seed | 0", "avg@k"):
        assert fact in card
    baseline, last = (row for row in events(whole, "evaluation") if row["step"] in (0, 4))
    for row in (baseline, last):
        assert f"{row['avg_at_k']:.3f} [{row['avg_low']:.3f}, {row['avg_high']:.3f}]" in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "LoRA adapter" not in card
    assert model.num_parameters() == AutoModelForCausalLM.from_pretrained(MODELS / "tiny-student").num_parameters()


def test_trained_tokens_are_the_sampled_ones_with_their_end_of_turn(whole: Path) -> None:
    """Token-in, token-out, seen on disk: what is trained on is what was sampled, in the prompt it was sampled in."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tiny-student")
    with (whole / "rounds" / "0000" / "trajectories.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        assert tokenizer.decode(row["token_ids"]["prompt"]) == row["prompt"]
        for name in ("rollout", "refined"):
            ids = row["token_ids"][name]
            assert (ids[-1] == tokenizer.eos_token_id) == (row["detail"][f"{name}_finish_reason"] == "stop")
            assert tokenizer.decode(ids, skip_special_tokens=True) == row[name]
        assert row["rollout"] in tokenizer.decode(row["token_ids"]["refine_prompt"])


def test_a_checkpoint_states_its_own_score_or_none(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"checkpoints": {"every_steps": 1}, "diagnosis": {"num_trajectories": 0}}
    changes["evaluation"] = {"dataset": {"path": str(data / "heldout.jsonl")}, "k": 1, "every_steps": 2}
    distil(parse_config(spec(data, optim={"batch_size": 16, "max_steps": 3}, **changes)), tmp_path)
    scores = {e["step"]: e["avg_at_k"] for e in events(tmp_path, "evaluation")}
    assert scores.keys() == {0, 2, 3}
    for step in range(4):
        found = verify_manifest(checkpoint_folder(tmp_path, step))["metrics"]
        assert found.get("avg_at_k") == scores.get(step)


def test_the_heldout_batch_is_step_0s_students_whenever_the_first_evaluation_is(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"diagnosis": {"num_trajectories": 0}, "mode": "opd", "loss": {}}
    changes["optim"] = {"learning_rate": 3e-2, "batch_size": 16, "max_steps": 2}
    batches = []
    for at_start in (True, False):
        out = tmp_path / str(at_start)
        evaluation = {"dataset": {"path": str(data / "heldout.jsonl")}, "k": 1, "at_start": at_start}
        distil(parse_config(spec(data, **changes, evaluation=evaluation)), out)
        lines = (checkpoint_folder(out, 2) / "state" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
        batches.append([json.loads(line)["rollout"] for line in lines])
    assert batches[0] == batches[1]


def test_a_folder_that_holds_a_run_is_not_trained_into_again(data: Path, whole: Path) -> None:
    with pytest.raises(SpecError, match=r"already holds a run, up to step-0*4; resume it \(--resume\)"):
        distil(parse_config(spec(data)), whole)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is not kept full by half a checkpoint, of this process or of one that died."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = parse_config(spec(data, evaluation={"holdout": 0.0}, diagnosis={"num_trajectories": 0}))
    stale = checkpoint_draft(tmp_path, 7)
    stale.mkdir(parents=True)
    monkeypatch.setattr("trd_engine.training.checkpoints.save.write_state", full)
    with pytest.raises(OSError, match="No space left"):
        distil(config, tmp_path)
    assert list(stale.parent.iterdir()) == []
