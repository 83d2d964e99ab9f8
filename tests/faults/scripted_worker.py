"""The worker's own Celery application with a scripted child: ``celery -A tests.faults.scripted_worker worker``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.worker.scripted_engine import Plan
from worker.celery_app import app, slot

SCRIPT = Path(__file__).parents[1] / "worker" / "scripted_engine.py"
PLAN = Plan(**json.loads(os.environ["SCRIPTED_PLAN"]))

slot.command_for = lambda folder, _devices: [sys.executable, str(SCRIPT), str(folder), PLAN.to_json()]

__all__ = ["app", "slot"]
