"""A step that is not finite does not happen, and leaves what is needed to look at it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trd_engine.step_batches import CPU, load, make_setup, sequences
from tests.trd_engine.tiny_runs import spec, write_data
from trd_engine.config import parse_config
from trd_engine.distillation.batching import split_into_micro_batches
from trd_engine.models.loading import causal_lm_of
from trd_engine.rollouts.files import read_trajectories
from trd_engine.runtime.errors import NonFiniteError
from trd_engine.runtime.events import Reporter
from trd_engine.training.session import Session
from trd_engine.training.setup import open_session
from trd_engine.training.step import optimizer_step


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A run whose rollouts are there, and whose first step comes next."""
    data = write_data(tmp_path / "data", train=12, heldout=2)
    changes: dict[str, Any] = {
        "optim": {"learning_rate": 1e-3, "batch_size": 6},
        "evaluation": {"holdout": 0.0},
        "diagnosis": {"num_trajectories": 0},
    }
    config = parse_config(spec(data, **changes))
    with Reporter(tmp_path / "out") as reporter:
        opened = open_session(config, reporter)
        opened.trajectories = opened.collector.collect(opened.request_round())
        yield opened


def test_a_poisoned_weight_is_found_in_the_saved_folder(session: Session) -> None:
    student = causal_lm_of(session.models.student)
    embedding = student.get_input_embeddings().weight
    assert session.trajectories is not None
    poisoned = session.trajectories[0].target.token_ids[0]
    with torch.no_grad():
        embedding[poisoned, 0] = float("nan")
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"see non-finite/step-1 in the run's folder"):
        session.train_step(session.trajectories)
    assert all(torch.equal(p.nan_to_num(), before[name].nan_to_num()) for name, p in student.named_parameters())
    assert session.state.step == 0

    folder = session.reporter.out_dir / "non-finite" / "step-1"
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["loss"] == "nan"
    assert (facts["step"], facts["round"], facts["divergence"]["kind"]) == (1, 0, "forward_kl")
    bad = {row["name"]: row["non_finite_weights"] for row in facts["parameters"]}
    assert bad["model.embed_tokens.weight"] == 1
    saved = read_trajectories(folder / "trajectories.jsonl", session.monitor.problems.train)
    assert [t.target.token_ids for t in saved] == [session.trajectories[i].target.token_ids for i in facts["positions"]]
    rows = [json.loads(line) for line in (folder / "tokens.jsonl").read_text().splitlines()]
    assert len(rows) == facts["num_non_finite_tokens"] > 0
    for row in rows:
        assert row["divergence"] == "nan"
        assert session.trajectories[row["position"]].target.token_ids[row["token"]] == row["token_id"]


def test_a_gradient_alone_is_enough() -> None:
    """All losses are finite here, and one parameter's gradient is not."""
    student = load("tiny-student")
    name, poisoned = next((n, p) for n, p in student.named_parameters() if n.endswith("1.mlp.up_proj.weight"))
    poisoned.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([4]), math.inf))
    batches = split_into_micro_batches(sequences(), max_tokens=100, device=CPU)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    with pytest.raises(NonFiniteError, match=r"gradient norm = (nan|inf)") as caught:
        optimizer_step(make_setup(student), batches, optimizer, max_grad_norm=1.0)
    evidence = caught.value.evidence
    assert evidence is not None
    assert evidence.tokens == ()
    assert math.isfinite(evidence.loss)
    rows, columns = poisoned.shape
    assert evidence.parameters == (
        {"name": name, "size": rows * columns, "non_finite_weights": 0, "non_finite_gradients": columns},
    )
