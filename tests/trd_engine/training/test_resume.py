"""Runs that were stopped or killed and are resumed: they end as one that nothing interrupted, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.trd_engine.tiny_runs import MODELS, events, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.evaluation.diagnosis.stage import RoundDiagnosis
from trd_engine.runtime.errors import DataChangedError, SpecError, StopRequested
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest
from trd_engine.training.loop import distil

pytestmark = pytest.mark.xdist_group("whole_run")  # of which there is one for both files, see conftest.py


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folder(out, step) / "model" / "model.safetensors")


def assert_bitwise_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _without_time(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "at"}


def _rounds_refined(out: Path) -> list[int]:
    return [e["round"] for e in events(out, "phase") if e["phase"] == "refining"]


def test_a_run_that_is_stopped_after_each_step_is_bitwise_the_uninterrupted_one(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Within rounds and between them, each part in a separate folder."""
    config = parse_config(spec(data, rounds=2))
    before = None
    for step in (1, 2, 3):
        out = tmp_path / str(step)

        def stop(out: Path = out) -> bool:
            return (out / "events.jsonl").exists() and len(metric(out, "loss")) == 1

        with pytest.raises(StopRequested):
            distil(config, out, resume_from=before, stop=stop)
        before = checkpoint_folder(out, step)
    distil(config, tmp_path / "last", resume_from=before)
    assert_bitwise_equal(weights(tmp_path / "last", 4), weights(whole, 4))


@pytest.mark.parametrize(("killed_after", "sampled_again", "reported_again"), [(0, [1], [0, 1]), (2, [], [1])])
def test_a_killed_run_continues_from_its_rollouts(
    data: Path, whole: Path, tmp_path: Path, killed_after: int, sampled_again: list[int], reported_again: list[int]
) -> None:
    """The checkpoint written after each collection holds it: nothing is sampled again, the events are the same."""
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [
        checkpoint_folder(whole, step).name for step in (0, 2, 4)
    ]
    distil(parse_config(spec(data, rounds=2)), tmp_path, resume_from=checkpoint_folder(whole, killed_after))
    assert _rounds_refined(tmp_path) == sampled_again
    for kind in ("trajectories", "diagnosis"):
        reported = [_without_time(e) for e in events(whole, kind) if e["round"] in reported_again]
        assert [_without_time(e) for e in events(tmp_path, kind)] == reported
    assert_bitwise_equal(weights(tmp_path, 4), weights(whole, 4))


def test_a_round_is_saved_before_its_diagnosis(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And two runs of one spec are bitwise equal: this one samples all its rollouts itself."""
    config = parse_config(spec(data, rounds=2))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RoundDiagnosis, "examine", die)
        with pytest.raises(KeyboardInterrupt):
            distil(config, tmp_path)
    distil(config, tmp_path, resume_from=checkpoint_folder(tmp_path, 0))
    assert _rounds_refined(tmp_path) == _rounds_refined(whole)
    assert [_without_time(e) for e in events(tmp_path, "diagnosis")] == [
        _without_time(e) for e in events(whole, "diagnosis")
    ]
    assert_bitwise_equal(weights(tmp_path, 4), weights(whole, 4))


def test_an_interrupted_evaluation_is_repeated_by_the_resumed_run(data: Path, tmp_path: Path) -> None:
    """Its checkpoint is older than the evaluation, which nothing else would ask for again."""
    changes: dict[str, Any] = {"checkpoints": {"every_steps": 1}, "diagnosis": {"num_trajectories": 0}}
    changes["evaluation"] = {"dataset": {"path": str(data / "heldout.jsonl")}, "k": 1, "every_steps": 1}
    config = parse_config(spec(data, optim={"batch_size": 16, "max_steps": 2}, **changes))
    first, second = tmp_path / "first", tmp_path / "second"

    def stop() -> bool:
        if not (first / "events.jsonl").exists():
            return False
        return [e["step"] for e in events(first, "phase") if e["phase"] == "evaluating"] == [0, 1]

    with pytest.raises(StopRequested):
        distil(config, first, stop=stop)
    assert [e["step"] for e in events(first, "evaluation")] == [0]
    distil(config, second, resume_from=checkpoint_folder(first, 1))
    assert [e["step"] for e in events(second, "evaluation")] == [1, 2]


def test_a_stop_in_the_last_evaluation_still_ends_with_the_whole_result(data: Path, tmp_path: Path) -> None:
    """What the stop saves has neither the merged model nor the last score; the run resumes in its folder or another."""
    changes: dict[str, Any] = {"mode": "opsd", "teacher": None, "loss": {}, "lora": {"rank": 2, "alpha": 4}}
    changes |= {"optim": {"batch_size": 16, "max_steps": 2}, "diagnosis": {"num_trajectories": 0}}
    config = parse_config(spec(data, **changes))
    first, second = tmp_path / "first", tmp_path / "second"

    def stop() -> bool:
        if not (first / "events.jsonl").exists():
            return False
        return events(first, "phase")[-1]["phase"] == "evaluating" and len(metric(first, "loss")) == 2

    with pytest.raises(StopRequested):
        distil(config, first, stop=stop)
    assert verify_manifest(checkpoint_folder(first, 2))["formats"] == ["adapter"]
    for out in (second, first):
        distil(config, out, resume_from=checkpoint_folder(first, 2))
        manifest = verify_manifest(checkpoint_folder(out, 2))
        assert manifest["formats"] == ["adapter", "merged"]
        assert manifest["metrics"]["avg_at_k"] == events(out, "evaluation")[-1]["avg_at_k"]


def test_an_interrupted_round_is_saved_once_it_is_collected(data: Path, tmp_path: Path) -> None:
    config = parse_config(spec(data, rounds=2, evaluation={"holdout": 0.0}, diagnosis={"num_trajectories": 0}))

    def stop() -> bool:
        if not (tmp_path / "events.jsonl").exists():
            return False
        return events(tmp_path, "phase")[-1] | {"phase": "rollout", "round": 1} == events(tmp_path, "phase")[-1]

    with pytest.raises(StopRequested):
        distil(config, tmp_path, stop=stop)
    state = checkpoint_folder(tmp_path, 2) / "state"
    assert not (state / "trajectories.jsonl").exists()
    with pytest.raises(StopRequested):  # two steps on, as far as a kill would come
        distil(config, tmp_path, resume_from=state.parent, stop=lambda: len(metric(tmp_path, "loss")) == 3)
    assert (state / "trajectories.jsonl").exists()


def test_after_a_stop_at_a_rounds_last_step_the_next_round_is_saved_once_it_is_collected(
    data: Path, tmp_path: Path
) -> None:
    config = parse_config(spec(data, rounds=2, evaluation={"holdout": 0.0}, diagnosis={"num_trajectories": 0}))

    def stop() -> bool:
        return (tmp_path / "events.jsonl").exists() and len(metric(tmp_path, "loss")) == 2

    with pytest.raises(StopRequested):
        distil(config, tmp_path, stop=stop)
    saved = checkpoint_folder(tmp_path, 2)
    before = verify_manifest(saved)["files"]
    with pytest.raises(StopRequested):
        distil(config, tmp_path, resume_from=saved, stop=lambda: len(metric(tmp_path, "loss")) == 3)
    state = json.loads((saved / "state" / "state.json").read_text(encoding="utf-8"))["state"]
    assert (state["step"], state["round"]) == (2, 1)
    assert (saved / "state" / "trajectories.jsonl").exists()
    assert verify_manifest(saved)["files"] != before


def test_another_spec_is_refused_on_resume_and_another_place_is_not(data: Path, whole: Path, tmp_path: Path) -> None:
    changed = spec(data, rounds=2, seed=1, optim={"learning_rate": 1e-4, "batch_size": 16})
    with pytest.raises(SpecError, match=r"optim.learning_rate = 0.0001, and was 0.001; seed = 1, and was 0; restore"):
        distil(parse_config(changed), tmp_path / "out", resume_from=checkpoint_folder(whole, 2))
    elsewhere = spec(data, rounds=2, student_name="moved", checkpoints={"every_steps": 7, "merged": False})
    distil(parse_config(elsewhere), tmp_path / "moved", resume_from=checkpoint_folder(whole, 2))
    assert_bitwise_equal(weights(tmp_path / "moved", 4), weights(whole, 4))


def test_other_evaluation_data_is_refused_on_resume(data: Path, whole: Path, tmp_path: Path) -> None:
    others = write_data(tmp_path / "others", heldout=20) / "heldout.jsonl"
    for evaluation, error in (
        ({"dataset": {"path": str(others)}, "k": 2}, DataChangedError),
        ({"k": 2}, DataChangedError),
    ):
        with pytest.raises(error, match="evaluation data with fingerprint"):
            distil(
                parse_config(spec(data, rounds=2, evaluation=evaluation)),
                tmp_path / "out",
                resume_from=checkpoint_folder(whole, 2),
            )


def test_evaluation_data_is_refused_on_resume_if_problems_were_held_out(data: Path, tmp_path: Path) -> None:
    """Otherwise the run would train on what it held out."""
    changes: dict[str, Any] = {"diagnosis": {"num_trajectories": 0}, "optim": {"batch_size": 16, "max_steps": 1}}
    config = parse_config(spec(data, **changes, evaluation={"holdout": 0.25, "k": 1}))
    first = tmp_path / "first"
    distil(config, first)
    added = {"holdout": 0.25, "k": 1, "dataset": {"path": str(data / "heldout.jsonl")}}
    with pytest.raises(DataChangedError, match="started with evaluation no separate data, and now has data with"):
        distil(
            parse_config(spec(data, **changes, evaluation=added)),
            tmp_path / "out",
            resume_from=checkpoint_folder(first, 0),
        )


def test_other_data_is_refused_on_resume(data: Path, whole: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", train=32)
    with pytest.raises(DataChangedError, match="fingerprint"):
        distil(parse_config(spec(other, rounds=2)), tmp_path / "out", resume_from=checkpoint_folder(whole, 4))


def test_a_lora_run_resumes_bitwise_and_its_merged_model_is_base_plus_adapter(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trd_engine.training.checkpoints.model_card.FEWEST_LOSSES", 3)
    config = parse_config(spec(data, mode="opsd", teacher=None, loss={}, lora={"rank": 4, "alpha": 8, "dropout": 0.1}))
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    distil(config, whole)

    def stop() -> bool:
        return (first / "events.jsonl").exists() and len(metric(first, "loss")) >= 2

    with pytest.raises(StopRequested):
        distil(config, first, stop=stop)
    distil(config, second, resume_from=checkpoint_folder(first, 2))
    assert_bitwise_equal(weights(second, 3), weights(whole, 3))
    last, resumed = (checkpoint_folder(out, 3) for out in (whole, second))
    for name in ("model/README.md", "model/training.png", "adapter/README.md", "adapter/training.png"):
        assert (resumed / name).read_bytes() == (last / name).read_bytes()
    assert not (checkpoint_folder(first, 2) / "model" / "training.png").exists(), "two losses are no curve"
    assert "adapter/training.png" in {file["name"] for file in verify_manifest(last)["files"]}
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(MODELS / "tiny-student")
    adapted = PeftModel.from_pretrained(base, checkpoint_folder(whole, 3) / "adapter").merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(checkpoint_folder(whole, 3) / "model")
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, adapted.state_dict()[name], rtol=1e-6, atol=1e-7)
