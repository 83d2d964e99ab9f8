"""The engine trains as it did: committed loss curves, almost to the bit if the environment is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.golden.loss_curves import FILE, NAMES, RUNS, curves, environment

SAME_ENVIRONMENT, OTHER_ENVIRONMENT = 1e-5, 0.15
"""Relative. Elsewhere sums run in another order, and a sample near a tie may part from the one of the record."""


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_curve_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    is_same = recorded["environment"] == environment() and torch.get_num_threads() == 1
    found = curves(name, tmp_path)
    for metric_name in NAMES:
        tolerance = SAME_ENVIRONMENT if is_same else OTHER_ENVIRONMENT
        assert found[metric_name] == pytest.approx(recorded["curves"][name][metric_name], rel=tolerance), metric_name
