"""The scores of a folder: those that a run reports for its own checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.tiny_runs import MODELS, events, spec, write_data
from trd_engine.cli import EXIT_FAILED, main
from trd_engine.config import parse_config
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.loop import distil

LORA = {"rank": 2, "alpha": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=16)


def spec_file(folder: Path, document: dict[str, Any]) -> str:
    path = folder / "spec.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "adapter"])
def test_a_checkpoint_has_the_scores_and_answers_that_its_run_reported(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lora: dict[str, int] | None
) -> None:
    document = spec(data, lora=lora, checkpoints={"merged": False}, diagnosis={"num_trajectories": 0})
    document["optim"] = {"learning_rate": 0.01, "batch_size": 16}
    distil(parse_config(document), tmp_path / "run")
    checkpoint = checkpoint_folder(tmp_path / "run", 1)
    out = tmp_path / "scores"
    assert main(["evaluate", spec_file(tmp_path, document), str(checkpoint), "--out", str(out)]) == 0
    before, after = events(tmp_path / "run", "evaluation")
    (again,) = events(out, "evaluation")
    assert again | {"at": 0, "step": 1} == after | {"at": 0}
    answers = (tmp_path / "run" / "evaluations" / "step-00000001.jsonl").read_text(encoding="utf-8")
    assert (out / "evaluations" / "step-00000000.jsonl").read_text(encoding="utf-8") == answers
    assert answers != (tmp_path / "run" / "evaluations" / "step-00000000.jsonl").read_text(encoding="utf-8")
    assert f"16 problems of evaluation: avg@2 {after['avg_at_k']:.1%}" in capsys.readouterr().out
    assert before["k"] == after["k"] == 2


def test_other_problems_and_another_number_of_samples(data: Path, tmp_path: Path) -> None:
    document = spec(data, evaluation={"holdout": 0.5, "k": 2})
    path = spec_file(tmp_path, document)
    student = str(MODELS / "tiny-student")
    assert main(["evaluate", path, student, "--out", str(tmp_path / "held-out"), "--k", "1"]) == 0
    other = ["--data", str(data / "heldout.jsonl")]
    assert main(["evaluate", path, student, "--out", str(tmp_path / "other"), *other]) == 0
    (held_out,), (others,) = events(tmp_path / "held-out", "evaluation"), events(tmp_path / "other", "evaluation")
    assert (held_out["dataset"], held_out["num_problems"], held_out["k"]) == ("holdout", 8, 1)
    assert (others["dataset"], others["num_problems"], others["k"]) == ("evaluation", 16, 2)


def test_a_budget_that_the_student_never_needs_drops_nothing(data: Path, tmp_path: Path) -> None:
    document = spec(data, mode="opd", loss={}, refine={"max_prompt_tokens": 8})
    student = str(MODELS / "tiny-student")
    assert main(["evaluate", spec_file(tmp_path, document), student, "--out", str(tmp_path / "out"), "--k", "1"]) == 0
    (scores,) = events(tmp_path / "out", "evaluation")
    assert scores["num_problems"] == 16


@pytest.mark.parametrize(
    ("changes", "folder", "complaint"),
    [
        ({}, "nowhere", "model_not_found: .*nowhere"),
        ({"evaluation": {"holdout": 0.0}}, "", "no problem is left to evaluate on; name evaluation.dataset"),
        ({"sampling": {"engine": "transformers", "max_prompt_tokens": 1}}, "", "raise sampling.max_prompt_tokens = 1"),
        (
            {"sampling": {"engine": "transformers", "max_new_tokens": 99_999}},
            "",
            "99999 tokens, but the context of the model .* 1024",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_an_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], folder: str, complaint: str
) -> None:
    path = spec_file(tmp_path, spec(data, **changes))
    model = tmp_path / folder if folder else MODELS / "tiny-student"
    assert main(["evaluate", path, str(model), "--out", str(tmp_path / "out")]) == EXIT_FAILED
    assert not (tmp_path / "out" / "evaluations").exists()  # what would keep it from a second try
    assert re.search(complaint, capsys.readouterr().err)


def test_a_folder_that_is_in_use_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec_file(tmp_path, spec(data, evaluation={"dataset": {"path": str(data / "heldout.jsonl")}, "k": 1}))
    arguments = ["evaluate", path, str(MODELS / "tiny-student"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert main(arguments) == EXIT_FAILED
    assert "holds a run or an evaluation already; give another folder" in capsys.readouterr().err
