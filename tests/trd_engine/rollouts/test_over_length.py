"""What does not fit: problems are dropped and listed, references and attempts are cut and it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.tiny_runs import events, spec
from trd_engine.config import parse_config
from trd_engine.runtime.errors import NoTrainingDataError
from trd_engine.training.loop import distil

LONG = "1+" * 60 + "1"
SOLUTION = "2+2;4"


def rows(folder: Path, *, num_long: int, num_short: int, solution: str = SOLUTION) -> Path:
    given = [{"id": f"long-{i}", "problem": f"{i}+{LONG}", "answer": "1"} for i in range(num_long)]
    given += [{"id": f"short-{i}", "problem": f"{i}+2", "answer": str(i + 2)} for i in range(num_short)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({**row, "solution": solution}) + "\n" for row in given), encoding="utf-8")
    return path


def notices(out: Path, code: str) -> list[dict[str, Any]]:
    return [event for event in events(out, "notice") if event["code"] == code]


def small(data: Path, **changes: Any) -> dict[str, Any]:
    base = {"dataset": {"path": str(data)}, "evaluation": {"holdout": 0.0}, "optim": {"batch_size": 8, "max_steps": 1}}
    return spec(data.parent, **{**base, **changes})


def test_dropped_problems_are_counted_and_listed_with_the_reason(tmp_path: Path) -> None:
    data = rows(tmp_path / "data", num_long=103, num_short=8)
    distil(parse_config(small(data)), tmp_path / "out")
    (notice,) = notices(tmp_path / "out", "problems_dropped")
    assert notice["message"].startswith("103 of 111 training problems were dropped")
    assert notice["data"]["num_dropped"] == 103
    assert len(notice["data"]["problems"]) == 100
    lines = (tmp_path / "out" / notice["data"]["file"]).read_text(encoding="utf-8").splitlines()
    listed = [json.loads(line) for line in lines]
    assert [row["problem_id"] for row in listed] == [f"long-{i}" for i in range(103)]
    assert all("prompt tokens > sampling.max_prompt_tokens = 64" in row["reason"] for row in listed)
    trained = (tmp_path / "out" / "rounds" / "0000" / "trajectories.jsonl").read_text(encoding="utf-8")
    assert {json.loads(line)["problem_id"] for line in trained.splitlines()} == {f"short-{i}" for i in range(8)}


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    data = rows(tmp_path / "data", num_long=3, num_short=0)
    with pytest.raises(NoTrainingDataError, match=r"all 3 were held out or over their prompt budget"):
        distil(parse_config(small(data)), tmp_path / "out")


def test_a_truncated_reference_without_an_attempt_is_reported(tmp_path: Path) -> None:
    data = rows(tmp_path / "data", num_long=0, num_short=8, solution="3+" * 40 + "3")
    config = parse_config(
        small(data, mode="opsd", teacher=None, loss={}, refine={"max_prompt_tokens": 40, "max_new_tokens": 96})
    )
    distil(config, tmp_path / "out")
    (notice,) = notices(tmp_path / "out", "references_cut")
    assert notice["data"]["num_cut"] == 8
    assert all(row["num_cut_tokens"] > 40 for row in notice["data"]["problems"])


def test_an_attempt_is_cut_before_the_reference_and_the_response_never(tmp_path: Path) -> None:
    data = rows(tmp_path / "data", num_long=0, num_short=8)
    refine = {"max_prompt_tokens": 16, "max_new_tokens": 96}
    sampling = {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 96, "temperature": 2.0}
    distil(parse_config(small(data, teacher=None, refine=refine, sampling=sampling)), tmp_path / "out")
    (notice,) = notices(tmp_path / "out", "prompts_cut")
    assert "the attempt's tail first" in notice["message"]
    lines = (tmp_path / "out" / "rounds" / "0000" / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    cut = [row for row in map(json.loads, lines) if row["detail"]["notices"]]
    assert len(cut) == notice["data"]["num_cut"] > 0
    for row in cut:
        assert "tokens of the attempt were cut" in row["detail"]["notices"][0]
        assert len(row["token_ids"]["refine_prompt"]) <= 16
        assert row["refined_tokens"] == len(row["token_ids"]["refined"])


def test_an_attempt_that_does_not_fit_is_left_out_and_its_problem_kept(tmp_path: Path) -> None:
    """The budget holds the problem and short attempts; a long one's notice is one token, a short one's nothing."""
    data = rows(tmp_path / "data", num_long=0, num_short=8, solution="4")
    # <user> 1+2 R 4 A <assistant>, and no token for an attempt
    refine = {"max_prompt_tokens": 8, "max_new_tokens": 96}
    config = parse_config(small(data, teacher=None, refine=refine))
    with pytest.raises(NoTrainingDataError, match=r"none of the round's 8 targets holds a token.*max_prompt_tokens"):
        distil(config, tmp_path / "none")
    (notice,) = notices(tmp_path / "none", "attempts_left_out")
    assert notice["data"]["num_left_out"] == 8
    assert not notices(tmp_path / "none", "problems_dropped")
    assert not notices(tmp_path / "none", "refinements_empty")
