"""Notices of a run's first round: they are events of the run, and end a strict one before it costs more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.trd_engine.tiny_runs import MODELS, events, spec, write_data
from trd_engine import cli
from trd_engine.config import parse_config
from trd_engine.runtime.errors import StrictNoticesError
from trd_engine.training.loop import distil


def phases(out: Path) -> list[str]:
    return [event["phase"] for event in events(out, "phase")]


def test_a_first_round_that_is_cut_ends_a_strict_run_before_it_is_refined(tmp_path: Path) -> None:
    data = write_data(tmp_path, train=24, heldout=2)
    changes = {"sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 2}}
    document = spec(data, **changes, optim={"batch_size": 8, "max_steps": 1}, evaluation={"holdout": 0.0})
    distil(parse_config(document), tmp_path / "free")
    (notice,) = [event for event in events(tmp_path / "free", "notice") if event["level"] == "warn"]
    assert (notice["code"], notice["count"]) == ("rollouts_cut", 8)
    assert "max_new_tokens = 2" in notice["message"]
    assert "refining" in phases(tmp_path / "free")
    with pytest.raises(StrictNoticesError, match=r"strict = true: rollouts_cut: 8 of 8 .*; raise sampling"):
        distil(parse_config({**document, "strict": True}), tmp_path / "strict")
    assert phases(tmp_path / "strict")[-1] == "rollout"
    assert "refining" not in phases(tmp_path / "strict")


def test_a_warning_of_the_set_up_ends_a_strict_run_before_anything_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path, train=8, heldout=2)
    changes = {
        "sampling": {
            "engine": "transformers",
            "max_prompt_tokens": 64,
            "max_new_tokens": 8,
            "gpu_memory_utilization": 0.5,
        }
    }
    document = parse_config(spec(data, **changes, strict=True, rounds=1))
    (tmp_path / "spec.json").write_text(document.model_dump_json(), encoding="utf-8")
    assert cli.main(["run", str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]) == cli.EXIT_FAILED
    assert phases(tmp_path / "out") == ["preparing"]
    shown = capsys.readouterr().err
    assert "! setting_ignored: sampling.gpu_memory_utilization is ignored" in shown
    assert "what to do: leave it out" in shown
    assert "strict_notices: strict = true: setting_ignored" in shown


def test_stop_tokens_that_differ_are_a_notice(tmp_path: Path) -> None:
    data = write_data(tmp_path, train=8, heldout=2)
    student = tmp_path / "student"
    shutil.copytree(MODELS / "tiny-student", student)
    (student / "generation_config.json").unlink()
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    (student / "config.json").write_text(json.dumps({**config, "eos_token_id": [1, 0]}), encoding="utf-8")
    changes = {"mode": "opsd", "teacher": None, "loss": {}, "student": str(student), "strict": True}
    with pytest.raises(StrictNoticesError, match="stop_ids: the files of the student's folder name different tokens"):
        distil(parse_config(spec(data, **changes)), tmp_path / "out")
    (notice,) = [event for event in events(tmp_path / "out", "notice") if event["level"] == "warn"]
    assert (notice["code"], notice["count"], notice["example"]) == ("stop_ids", 1, "0 '<pad>', of config.json")


def test_rows_with_an_unread_part_end_a_strict_run(tmp_path: Path) -> None:
    data = write_data(tmp_path, train=8, heldout=2)
    for name in ("train.jsonl", "heldout.jsonl"):
        rows = [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**row, "passage": f"What # means in problem {i}."}) + "\n" for i, row in enumerate(rows)]
        (data / name).write_text("".join(lines), encoding="utf-8")
    with pytest.raises(StrictNoticesError, match=r"unread_columns: .*passage"):
        distil(parse_config(spec(data, strict=True)), tmp_path / "out")
    notices = [event for event in events(tmp_path / "out", "notice") if event["level"] == "warn"]
    assert [(notice["code"], notice["count"]) for notice in notices] == [("unread_columns", 8), ("unread_columns", 2)]
    assert notices[1]["message"].startswith("evaluation.dataset: ")
    assert phases(tmp_path / "out") == ["preparing"]


def test_references_that_no_answer_can_match_end_a_strict_run(tmp_path: Path) -> None:
    data = write_data(tmp_path, train=8, heldout=2)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[2] |= {"answer": r"\frac{1}{", "solution": "no box"}
    rows[5]["solution"] = r"so \boxed{1234567}"
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {"task": "math", "evaluation": {"holdout": 0.0}, "optim": {"batch_size": 8, "max_steps": 1}}
    changes["sampling"] = {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 2}
    document = spec(data, strict=True, **changes)
    with pytest.raises(StrictNoticesError, match=r"unmatchable_references: .*reference_contradicts_solution"):
        distil(parse_config(document), tmp_path / "out")
    warnings = [event for event in events(tmp_path / "out", "notice") if event["level"] == "warn"]
    assert [(event["count"], event["example"][:5]) for event in warnings] == [(1, "row 3"), (1, "row 6")]
    assert phases(tmp_path / "out") == ["preparing"]
    document["dataset"]["references_judged"] = True  # as those of an upload
    with pytest.raises(StrictNoticesError, match=r"^strict = true: rollouts_cut"):
        distil(parse_config(document), tmp_path / "judged")
