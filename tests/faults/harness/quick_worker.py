"""The worker's own Celery application with the small engine: ``celery -A tests.faults.harness.quick_worker worker``."""

from __future__ import annotations

import sys
from pathlib import Path

from worker.celery_app import app, slot

ENGINE = Path(__file__).with_name("quick_engine.py")

slot.command_for = lambda folder, _devices: [sys.executable, str(ENGINE), str(folder)]

__all__ = ["app", "slot"]
