"""The model card says how good the weights are, shows how they got there, and how to use them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from trd_engine.config import RunConfig, parse_config
from trd_engine.training.checkpoints.model_card import model_card, training_plot
from trd_engine.training.checkpoints.state import TrainingState, read_state, write_state
from trd_engine.types import ScoreRow


def config(**changes: Any) -> RunConfig:
    base: dict[str, Any] = {"mode": "trd", "student": "ann/small", "teacher": "bob/big", "dataset": {"path": "x"}}
    return parse_config({**base, **changes})


def state(num_steps: int = 12) -> TrainingState:
    scores = [ScoreRow(step, "holdout", 4, 50, 0.3 + step / 40, 0.5, 0.2, 0.7, 0.4, 0.6) for step in (0, 6, 12)]
    losses = [1 / step for step in range(1, num_steps + 1)]
    return TrainingState("f" * 8, step=num_steps, scores=scores, losses=losses)


def test_a_plot_of_accuracy_and_loss_is_small_and_the_same_for_the_same_run(tmp_path: Path) -> None:
    plot = training_plot(state())
    assert plot is not None
    (tmp_path / "plot.png").write_bytes(plot)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (960, 320)
    assert len(plot) < 60_000
    model = torch.nn.Linear(2, 2)
    write_state(tmp_path, state(), model, torch.optim.SGD(model.parameters()))
    assert training_plot(read_state(tmp_path)) == plot, "a resumed run draws the same"
    other = state()
    other.losses[3] += 0.1
    assert training_plot(other) != plot


def test_runs_of_older_versions_and_very_short_ones(tmp_path: Path) -> None:
    before = TrainingState("f", step=40, losses=[0.5] * 20)  # no scores, and the losses of the first 20 steps are lost
    assert training_plot(before) is not None
    without_ends = [ScoreRow(step, "holdout", 1, 9, 0.5, 0.5) for step in (0, 1, 2)]
    assert training_plot(TrainingState("f", step=2, scores=without_ends)) is not None
    assert training_plot(TrainingState("f", step=9, losses=[1.0] * 9, scores=without_ends[:2])) is None
    assert "training.png" not in model_card(config(lora=None), state(), num_steps=12, has_plot=False)


def test_a_card_of_lora_says_how_to_use_adapter_and_merged_model() -> None:
    card = model_card(config(lora={"rank": 8}), state(), num_steps=12, has_plot=True)
    assert "![Accuracy and loss by step](training.png)" in card
    assert "| Weights | LoRA, rank 8 |" in card
    assert "If this folder has `adapter_config.json` it is a LoRA adapter:" in card
    assert 'AutoPeftModelForCausalLM.from_pretrained("FOLDER", dtype="auto")' in card
    assert "`vllm serve ann/small --enable-lora --max-lora-rank 8 --lora-modules student=FOLDER` serves it." in card
    assert "Otherwise it is a whole model:" in card
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "ann/small"


def test_a_base_model_that_a_hub_would_refuse_is_left_out_of_the_metadata() -> None:
    for student in ("/models/small", "ann: x", "a/b/c"):
        card = model_card(config(student=student, lora=None), state(), num_steps=12, has_plot=False)
        assert "base_model" not in yaml.safe_load(card.split("---")[1])
