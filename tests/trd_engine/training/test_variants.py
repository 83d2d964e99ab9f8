"""Short runs of each loss, kind of teacher and vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trd_engine.tiny_runs import MODELS, events, metric, spec
from trd_engine.config import parse_config
from trd_engine.runtime.errors import DataError
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest
from trd_engine.training.loop import distil

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
