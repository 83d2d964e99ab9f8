"""Looking for work in the database, doorbell or not."""

from __future__ import annotations

from worker.attempt import run_next
from worker.periodic import Periodic
from worker.repository import schema_is_ready
from worker.slot import Slot


def make_poller(slot: Slot) -> Periodic:
    """A thread that runs what waits, one job after the other, and looks again every few seconds."""

    def run_all_waiting() -> None:
        while run_next(slot):
            pass

    return Periodic(
        "poller",
        run_all_waiting,
        seconds=slot.settings.poll_seconds,
        stopping=slot.stopping,
        ready=lambda: schema_is_ready(slot.database),
    )
