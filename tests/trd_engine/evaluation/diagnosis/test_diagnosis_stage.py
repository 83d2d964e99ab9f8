"""The diagnosis of real tiny runs, held against dense float64 arithmetic and against the testbed's own judge."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from testbed import task as testbed
from tests.trd_engine.tiny_runs import MODELS, WHOLE_ANSWERS, events, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.evaluation.diagnosis.alternatives import MAX_PLACES, MAX_TRAJECTORIES, NUM_ALTERNATIVES
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.loop import distil
from trd_engine.training.plan import batch_positions

SIZE = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a TRD run of one round whose diagnosis takes most of the round."""
    out = tmp_path_factory.mktemp("whole")
    distil(parse_config(spec(data, **WHOLE_ANSWERS, diagnosis={"num_trajectories": SIZE, "steps": "reference"})), out)
    return out


def lines(out: Path, round_index: int = 0) -> list[dict[str, Any]]:
    path = out / "rounds" / f"{round_index:04d}" / "trajectories.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def diagnosed(whole: Path) -> list[dict[str, Any]]:
    return [line for line in lines(whole) if "kl_per_token_rollout" in line]


def dense(name: str) -> Callable[[list[int], list[int]], Tensor]:
    """Return a function for the model's log-probabilities [T, V] in float64, each completion alone, whole logits."""
    model = AutoModelForCausalLM.from_pretrained(MODELS / name).double().eval()

    @torch.no_grad()
    def logprobs(prompt: list[int], target: list[int]) -> Tensor:
        logits: Tensor = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)

    return logprobs


def test_it_is_said_in_the_events_and_lies_with_the_round(whole: Path) -> None:
    (event,) = events(whole, "diagnosis")
    assert (event["round"], event["step"]) == (0, 0)
    stored = json.loads((whole / "rounds" / "0000" / "diagnosis.json").read_text(encoding="utf-8"))
    assert stored == {"round": 0, "step": 0, **event["report"]}
    assert event["report"]["num_trajectories"] == SIZE
    assert event["report"]["sampler_gap"] < 1e-3
    for view in ("rollout", "refined", "refined_vanilla"):
        assert metric(whole, f"{view}_epistemic_mass") == [event["report"][view]["epistemic_mass"]]


def test_the_views_are_the_dense_computation(whole: Path, diagnosed: list[dict[str, Any]]) -> None:
    """Teacher and student of step 0, in the contexts that METHOD names, with nothing fused, batched or rounded."""
    student, teacher = dense("tiny-student"), dense("tiny-teacher")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tiny-student")
    (onset,) = tokenizer.encode("wait", add_special_tokens=False)
    report = events(whole, "diagnosis")[0]["report"]
    for view, text, context in (
        ("rollout", "rollout", "prompt"),
        ("refined", "refined", "refine_prompt"),
        ("refined_vanilla", "refined", "prompt"),
    ):
        kls, masses, bimodal, agrees = [], [], [], []
        for line in diagnosed:
            ids = line["token_ids"]
            log_p, log_q = student(ids["prompt"], ids[text]), teacher(ids[context], ids[text])
            q = log_q.exp()
            kls.append((q * (log_q - log_p)).sum(-1))
            masses.append(q[:, onset])
            first, second = q.sort(dim=-1, descending=True).values[:, :2].unbind(-1)  # one onset: no tokens to merge
            bimodal.append((second >= 0.1) & (first + second >= 0.8))
            agrees.append(log_p.argmax(-1) == log_q.argmax(-1))
        ours = report[view]
        assert ours["num_tokens"] == sum(map(len, kls))
        assert ours["forward_kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)
        assert ours["forward_kl_p95"] == pytest.approx(float(torch.cat(kls).quantile(0.95)), rel=1e-4)
        assert ours["epistemic_mass"] == pytest.approx(float(torch.cat(masses).mean()), rel=1e-4)
        assert ours["bimodal_share"] == pytest.approx(float(torch.cat(bimodal).double().mean()), abs=1e-3)
        assert ours["top1_agreement"] == pytest.approx(float(torch.cat(agrees).double().mean()), abs=1e-3)
        if view != "refined_vanilla":
            name = "kl_per_token_rollout" if view == "rollout" else "kl_per_token_refined"
            for line, kl_T in zip(diagnosed, kls, strict=True):
                assert line[name] == pytest.approx(kl_T.tolist(), abs=2e-4)


def test_tokens_have_their_texts_and_the_likeliest_alternatives(whole: Path, diagnosed: list[dict[str, Any]]) -> None:
    student, teacher = dense("tiny-student"), dense("tiny-teacher")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tiny-student")
    with_alternatives = diagnosed[:MAX_TRAJECTORIES]
    for line in diagnosed:
        for text in ("rollout", "refined"):
            lengths = line["token_detail"]["lengths"][text]
            assert len(lengths) == line[f"{text}_tokens"]
            assert sum(lengths) == len(line[text])
            assert (line["token_detail"]["alternatives"][text] is not None) == (line in with_alternatives)
    for line in with_alternatives:
        for text, context in (("rollout", "prompt"), ("refined", "refine_prompt")):
            ids = line["token_ids"]
            found = line["token_detail"]["alternatives"][text]
            log_p, log_q = student(ids["prompt"], ids[text]), teacher(ids[context], ids[text])
            kl_T = np.array(line[f"kl_per_token_{text}"])
            assert len(found) == min(MAX_PLACES, len(kl_T))
            assert min(kl_T[[one["token"] for one in found]]) >= np.sort(kl_T)[-len(found)] - 1e-3
            for one in found[:8]:
                for model, log_TV in (("student", log_p), ("teacher", log_q)):
                    best = log_TV[one["token"]].exp().topk(NUM_ALTERNATIVES)
                    assert [p for _, p in one[model]] == pytest.approx(best.values.tolist(), abs=2e-4)
                    assert one[model][0][0] == tokenizer.decode([int(best.indices[0])])


def test_each_trajectory_names_the_step_that_trains_on_it(whole: Path) -> None:
    trained = {line["position"]: line["step"] for line in lines(whole)}
    seed, size = parse_config(spec(whole, **WHOLE_ANSWERS)).seed, len(trained)
    expected = {i: step + 1 for step in range(3) for i in batch_positions(size, 16, seed, 0, step)}
    assert trained == expected


def test_the_first_wrong_step_is_the_testbeds(whole: Path, diagnosed: list[dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tiny-student")
    report = events(whole, "diagnosis")[0]["report"]["first_wrong_step"]
    shares, before = [], []
    for line in diagnosed:
        problem = line["prompt"].removeprefix("<user>").removesuffix("<assistant>")
        separator = testbed.style_of(line["rollout"])
        assert separator is not None
        steps = line["rollout"].split(separator)
        wrong = testbed.first_wrong_line(problem, steps)
        if wrong is not None:
            start = len(tokenizer.encode("".join(s + separator for s in steps[:wrong]), add_special_tokens=False))
            shares.append(start / line["rollout_tokens"])
            before += line["kl_per_token_rollout"][:start]
            assert line["token_detail"]["first_wrong_step"][0] == start
    assert (report["num_checked"], report["num_wrong"]) == (SIZE, len(shares))
    assert report["median_share"] == pytest.approx(float(np.median(shares)))
    assert report["before"]["num_tokens"] == len(before)
    assert report["before"]["forward_kl"] == pytest.approx(sum(before) / len(before), abs=2e-4)


def test_it_shows_prefix_failure_where_it_is_real(whole: Path) -> None:
    """The student misreads an operation and the teacher knows better: both signs of prefix failure, and the cure."""
    report = events(whole, "diagnosis")[0]["report"]
    wrong, parting = report["first_wrong_step"], report["parting"]
    assert wrong["within"]["forward_kl"] > 5 * wrong["before"]["forward_kl"]
    assert wrong["after"]["forward_kl"] > 3 * wrong["before"]["forward_kl"]
    assert report["rollout"]["epistemic_mass"] > 5 * report["refined"]["epistemic_mass"]
    onsets = {point["distance"]: point["mass"] for point in wrong["onset_by_step"]}
    assert onsets[1] > 3 * onsets[0]
    assert onsets[2] > 2 * onsets[0], "the correction is begun again and again"
    assert parting["correction_by_token"][0]["mass"] > 0.5
    assert report["rollout"]["clipped_kl_share"] > 0.8


def test_records_say_where_the_two_part(whole: Path) -> None:
    for line in lines(whole):
        rollout, refined, place = line["token_ids"]["rollout"], line["token_ids"]["refined"], line["parts_at_token"]
        if place is None:
            assert rollout == refined
        else:
            assert rollout[:place] == refined[:place]
            assert rollout[place : place + 1] != refined[place : place + 1]


def weights(out: Path, step: int, name: str = "model/model.safetensors") -> dict[str, Tensor]:
    return load_file(checkpoint_folder(out, step) / name)


def test_a_run_is_bitwise_the_same_without_it(data: Path, whole: Path, tmp_path: Path) -> None:
    distil(parse_config(spec(data, **WHOLE_ANSWERS, diagnosis={"num_trajectories": 0})), tmp_path)
    ours, theirs = weights(whole, 3), weights(tmp_path, 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert events(tmp_path, "diagnosis") == []
    assert not (tmp_path / "rounds" / "0000" / "diagnosis.json").exists()
    assert all("kl_per_token_rollout" not in line for line in lines(tmp_path))


def test_a_rollout_beyond_the_teachers_context_is_left_out(tmp_path: Path) -> None:
    """The student may write more than the teacher, which reads cut attempts only, can hold."""
    rng, rows = random.Random(0), tmp_path / "rows.jsonl"
    problems = [testbed.draw_problem(rng, "train", num_operations).text for num_operations in (2, 3, 4, 5) * 4]
    rows.write_text("".join(json.dumps({"problem": p, "answer": testbed.answer(p)}) + "\n" for p in problems))
    folder = tmp_path / "short-teacher"
    shutil.copytree(MODELS / "tiny-teacher", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 50}))
    changes: dict[str, Any] = {"teacher": str(folder), "refine": {"max_prompt_tokens": 32, "max_new_tokens": 18}}
    changes |= {"evaluation": {"holdout": 0.0}, "dataset": {"path": str(rows)}, "diagnosis": {"num_trajectories": 16}}
    distil(parse_config(spec(tmp_path, **{**WHOLE_ANSWERS, **changes})), tmp_path / "out")
    found = lines(tmp_path / "out")
    fits = [len(line["token_ids"]["prompt"]) + line["rollout_tokens"] <= 50 for line in found]
    assert ["kl_per_token_rollout" in line for line in found] == fits
    assert 0 < sum(fits) < len(fits)


def test_a_student_that_teaches_itself_with_dropout_and_rounds(data: Path, tmp_path: Path) -> None:
    """Each round has its own report, and dropout, which draws from the generator, falls as it would without one."""
    changes: dict[str, Any] = {"mode": "opsd", "teacher": None, "loss": {"token_clip": 0.05}, "rounds": 2}
    changes |= {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}, "evaluation": {"holdout": 0.0}}
    for name, size in (("with", 8), ("without", 0)):
        distil(parse_config(spec(data, **changes, diagnosis={"num_trajectories": size})), tmp_path / name)
    adapter = "adapter/adapter_model.safetensors"
    ours, theirs = (weights(tmp_path / name, 4, adapter) for name in ("with", "without"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found = events(tmp_path / "with", "diagnosis")
    assert [(e["round"], e["step"]) for e in found] == [(0, 0), (1, 2)]
    for event in found:
        report = event["report"]
        assert (report["num_trajectories"], report["rollout"]["clip_at"]) == (8, 0.05)
        assert (report["refined"], report["parting"], report["first_wrong_step"]) == (None, None, None)
    assert sum("kl_per_token_rollout" in line for line in lines(tmp_path / "with", 1)) == 8
