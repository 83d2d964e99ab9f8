"""Small real runs on the committed models, for tests of the loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.make_data import main as make_data

MODELS = Path(__file__).parents[2] / "testbed" / "models"

WHOLE_ANSWERS: dict[str, Any] = {
    "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 96},
    "refine": {"max_prompt_tokens": 192, "max_new_tokens": 96},
}
"""Changes to `spec` for tests that look at what the models answer: its budgets cut most answers off."""


def write_data(folder: Path, *, train: int = 48, heldout: int = 16) -> Path:
    """Write problems of the testbed; return the folder that holds train.jsonl and heldout.jsonl."""
    make_data(["--out", str(folder), "--train", str(train), "--heldout", str(heldout), "--seed", "0"])
    return folder


def spec(data: Path, **changes: Any) -> dict[str, Any]:
    """Return the spec of a TRD run with another model as the teacher: 48 problems, 3 steps; most answers are cut
    off."""
    base: dict[str, Any] = {
        "mode": "trd",
        "student": str(MODELS / "tiny-student"),
        "teacher": str(MODELS / "tiny-teacher"),
        "dataset": {"path": str(data / "train.jsonl")},
        "task": "exact",
        "loss": {"teacher_context": "refine"},
        "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 12},
        "refine": {"max_prompt_tokens": 192, "max_new_tokens": 12},
        "lora": None,
        "optim": {"learning_rate": 1e-3, "batch_size": 16},
        "evaluation": {"dataset": {"path": str(data / "heldout.jsonl")}, "k": 2},
        "diagnosis": {"num_trajectories": 6},
        "device": "cpu",
    }
    return {**base, **changes}


def events(out_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the run's events of one type, in order."""
    lines = (out_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["type"] == kind]


def metric(out_dir: Path, name: str) -> list[float]:
    """Return a metric's values in the order in which they were reported."""
    return [event["values"][name] for event in events(out_dir, "metrics") if name in event["values"]]


def until(is_true: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Wait for what another thread or process does."""
    give_up_at = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < give_up_at, "what the test waits for did not happen"
        time.sleep(0.005)
