"""Whole runs of the loop on the committed small models."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trd_engine.tiny_runs import MODELS, WHOLE_ANSWERS, events, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.evaluation.diagnosis.stage import RoundDiagnosis
from trd_engine.runtime.errors import DataChangedError, DataError, SpecError, StopRequested
from trd_engine.training.checkpoints.checkpoint import checkpoint_draft, checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest
from trd_engine.training.loop import distil


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted TRD run of two rounds."""
    out = tmp_path_factory.mktemp("whole")
    distil(parse_config(spec(data, rounds=2)), out)
    return out


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folder(out, step) / "model" / "model.safetensors")


def assert_bitwise_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _without_time(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "at"}


def _rounds_refined(out: Path) -> list[int]:
    return [e["round"] for e in events(out, "phase") if e["phase"] == "refining"]


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


def test_a_run_that_is_stopped_after_each_step_is_bitwise_the_uninterrupted_one(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Within rounds and between them, each part in a folder of its own."""
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


def test_an_evaluation_that_a_stop_cut_off_is_made_up_for(data: Path, tmp_path: Path) -> None:
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


def test_a_round_that_a_stop_cut_off_is_kept_once_it_is_collected(data: Path, tmp_path: Path) -> None:
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


def test_after_a_stop_at_a_rounds_last_step_the_next_round_is_kept_once_it_is_collected(
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


def test_evaluation_data_is_refused_on_resume_where_problems_were_held_out(data: Path, tmp_path: Path) -> None:
    """Else the run would go on to train on what it held out."""
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


VARIANTS: dict[str, dict[str, Any]] = {
    "forward_kl": {},
    "forward_kl_clip": {"token_clip": 0.1},
    "reverse_kl": {"divergence": "reverse_kl"},
    "reverse_kl_topk": {"divergence": "reverse_kl", "support": "top_k", "teacher_top_k": 8},
    "trd": {"teacher_context": "refine"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("teaches_itself", [False, True], ids=["opd", "opsd"])
def test_every_variant_trains(data: Path, tmp_path: Path, variant: str, teaches_itself: bool) -> None:
    mode = "trd" if variant == "trd" else "opsd" if teaches_itself else "opd"
    changes: dict[str, Any] = {"mode": mode, "loss": VARIANTS[variant], "evaluation": {"holdout": 0.0}}
    changes["optim"] = {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 2}
    changes["diagnosis"] = {"num_trajectories": 0}
    changes["lora"] = {"rank": 4, "alpha": 8} if teaches_itself else None
    if teaches_itself:
        changes["teacher"] = None
    distil(parse_config(spec(data, **changes)), tmp_path)
    losses = metric(tmp_path, "loss")
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    formats = verify_manifest(checkpoint_folder(tmp_path, 2))["formats"]
    assert formats == (["adapter", "merged"] if teaches_itself else ["full"])
    if variant == "forward_kl_clip":
        assert all(share > 0 for share in metric(tmp_path, "clip_share"))


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


@pytest.mark.parametrize("num_references", [0, 3])
def test_a_privileged_teacher_scores_only_what_has_a_reference(data: Path, tmp_path: Path, num_references: int) -> None:
    """Benchmarks often have answers alone; a teacher shown an empty reference would measure something else."""
    rows = [json.loads(line) for line in (data / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows[num_references:]:
        del row["solution"]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes: dict[str, Any] = {"mode": "opsd", "teacher": None, "loss": {}, "lora": {"rank": 4, "alpha": 8}}
    changes |= {"optim": {"batch_size": 16, "max_steps": 1}, "evaluation": {"dataset": {"path": str(bare)}, "k": 1}}
    distil(parse_config(spec(data, **changes)), tmp_path / "out")
    assert [e["num_problems"] for e in events(tmp_path / "out", "evaluation")] == [16, 16]
    (notice,) = [e for e in events(tmp_path / "out", "notice") if e["code"] == "heldout_without_reference"]
    assert notice["data"]["num_left_out"] == 16 - num_references
    assert len(metric(tmp_path / "out", "heldout_forward_kl")) == (2 if num_references else 0)
    heldout = checkpoint_folder(tmp_path / "out", 1) / "state" / "heldout.jsonl"
    assert heldout.exists() == (num_references > 0)
    if num_references:
        assert len(heldout.read_text(encoding="utf-8").splitlines()) == num_references


def test_a_student_that_teaches_itself_needs_a_reference_in_every_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "12+3", "answer": "15"}\n' * 1, encoding="utf-8")
    config = parse_config(
        spec(tmp_path, dataset={"path": str(rows)}, mode="opsd", teacher=None, loss={}, evaluation={"holdout": 0.0})
    )
    with pytest.raises(DataError, match="no reference solution"):
        distil(config, tmp_path / "out")


def test_ids_of_a_heads_padding_end_a_rollout_and_not_the_run(data: Path, tmp_path: Path) -> None:
    """A student whose padding comes as often as "+", and a teacher that has no rows for it."""
    model = AutoModelForCausalLM.from_pretrained(MODELS / "tiny-student")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tiny-student")
    num_tokens = model.config.vocab_size
    model.resize_token_embeddings(num_tokens + 1, mean_resizing=False)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[num_tokens] = head[tokenizer.get_vocab()["+"]]
    shutil.copytree(MODELS / "tiny-student", tmp_path / "padded")
    model.save_pretrained(tmp_path / "padded")
    changes: dict[str, Any] = {"evaluation": {"holdout": 0.0}, "optim": {"batch_size": 16, "max_steps": 1}}
    distil(parse_config(spec(data, student=str(tmp_path / "padded"), **changes)), tmp_path / "out")
    lines = (tmp_path / "out" / "rounds" / "0000" / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert "unknown_token" in {row["detail"]["rollout_finish_reason"] for row in rows}
    assert max(max(row["token_ids"]["rollout"], default=0) for row in rows) < num_tokens
