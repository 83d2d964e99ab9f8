"""Small real runs with each weight on the token loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.tiny_runs import WHOLE_ANSWERS, events, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.runtime.errors import SpecError
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.loop import distil

WEIGHTS: dict[str, tuple[dict[str, Any], float, float]] = {
    "special": ({"skip_special_tokens": True}, 0.8, 0.999),
    "first": ({"skip_first_tokens": 3}, 0.5, 0.999),
    "prefix": ({"prefix_tokens": 8}, 0.05, 0.6),
    "entropy": ({"entropy_share": 0.5}, 0.5, 0.55),
    "soft_or": ({"entropy_share": 0.2, "entropy_score": "soft_or"}, 0.2, 0.26),
    "drift": ({"drift_gamma": 0.5}, 1.0, 1.0),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=16, heldout=2)


def short_spec(data: Path, **changes: Any) -> dict[str, Any]:
    """Return the spec of two steps of eight trajectories, without evaluation."""
    base = spec(data, optim={"learning_rate": 1e-3, "batch_size": 8}, diagnosis={"num_trajectories": 0})
    base |= {"evaluation": {"holdout": 0.0}, "checkpoints": {"every_steps": 100}}
    return {**base, **changes}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_run_keeps_the_configured_tokens(name: str, data: Path, tmp_path: Path) -> None:
    weights, least, most = WEIGHTS[name]
    loss = {"teacher_context": "refine", "token_weights": weights}
    distil(parse_config(short_spec(data, loss=loss, **WHOLE_ANSWERS)), tmp_path)
    shares = metric(tmp_path, "kept_token_share")
    assert len(shares) == 2
    assert all(least <= share <= most for share in shares)
    assert all(value > 0 for value in metric(tmp_path, "loss"))
    assert events(tmp_path, "finished")
    card = (checkpoint_folder(tmp_path, 2) / "model" / "README.md").read_text(encoding="utf-8")
    assert all(f"{field} {value}" in card for field, value in weights.items())


def test_problems_that_are_always_or_never_solved_are_not_trained_on(data: Path, tmp_path: Path) -> None:
    loss = {"token_weights": {"pass_rate": True}}
    sampling = {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 96, "temperature": 1.0}
    distil(parse_config(short_spec(data, mode="opd", loss=loss, samples_per_prompt=4, sampling=sampling)), tmp_path)
    shares = metric(tmp_path, "kept_token_share")
    assert len(shares) == 8
    assert 0.0 < sum(shares) / len(shares) < 1.0


def test_the_loss_turns_from_forward_to_reverse(data: Path, tmp_path: Path) -> None:
    """The first step is as without a schedule, and the second, from the same weights, is not."""
    losses = []
    for index, after in enumerate((None, 0.5, 0.0)):
        out = tmp_path / str(index)
        distil(parse_config(short_spec(data, mode="opd", loss={"reverse_after": after})), out)
        losses.append(metric(out, "loss"))
    plain, turned, reverse = losses
    assert turned[0] == plain[0]
    assert turned[1] != plain[1]
    assert reverse[0] != plain[0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"loss": {"token_weights": {"prefix_tokens": 3, "skip_first_tokens": 3}}}, "skip_first_tokens"),
        ({"loss": {"token_weights": {"entropy_score": "soft_or"}}}, "entropy_share"),
        ({"loss": {"token_weights": {"entropy_share": 1.0}}}, "entropy_share"),
        ({"loss": {"token_weights": {"pass_rate": True}}}, "samples_per_prompt"),
        ({"loss": {"divergence": "jsd", "reverse_after": 0.5}}, "reverse_after"),
        ({"loss": {"divergence": "jsd", "support": "top_k"}}, "jsd is defined on the full vocabulary"),
        ({"optim": {"betas": [0.9, 1.0]}}, "betas"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], field: str, data: Path) -> None:
    with pytest.raises(SpecError, match=field):
        parse_config(short_spec(data, mode="opd", **changes))
