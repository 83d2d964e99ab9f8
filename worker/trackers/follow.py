"""``python -m worker.trackers.follow FOLDER NUMBER``: report the run in an attempt's folder to one tracker or hub.

The run's ``events.jsonl`` is the buffer: after an outage the run is opened again, the file is read from its beginning,
and steps that the tracker has are skipped. Needs the standard library and the tracker's own.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.trackers.backends import BACKENDS, RunFacts
from worker.trackers.hub import PushRefusedError, push

CONFIG_FILE, END_FILE = "trackers.json", "trackers.end"
POLL_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


def status_file(folder: Path, number: int) -> Path:
    """Return the file in which the process reports its state: ``{"state", "message", "url"}``.

    The state is ``ok``, ``failing`` (it tries again), ``refused`` (it does not) or ``done``.
    """
    return folder / f"tracker-{number}.json"


def main(folder: Path, number: int) -> None:
    """Report until the run has ended and everything is sent; retry for as long as the process lives."""
    os.nice(10)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    run = RunFacts(config["job_id"], config["name"], config["spec"], Path(config["folder"]))
    settings = config["integrations"][number]
    pause_seconds = 1.0
    while True:
        try:
            if settings["type"] != "hub":
                url = report(folder, number, settings, run)
            elif any([event["type"] == "finished" for event in events(folder)]):  # noqa: C419 - it waits for the end
                url = push(folder, settings, run.job_id, config["hub_network"])
            else:
                url = ""
            return write_status(folder, number, "done", url=url)
        except PushRefusedError as error:
            return write_status(folder, number, "refused", str(error))
        except Exception as error:  # noqa: BLE001 - the boundary of a tracker, whose libraries have their own errors
            write_status(folder, number, "failing", f"{type(error).__name__}: {error}")
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)


def report(folder: Path, number: int, settings: dict[str, Any], run: RunFacts) -> str:
    """Open the tracker's run, report all that it lacks until the run ends, and close it; return its address."""
    tracker = BACKENDS[settings["type"]](settings, run)
    write_status(folder, number, "ok", url=tracker.url)
    last: dict[str, int] = {}
    has_finished = False
    for event in events(folder):
        has_finished |= event["type"] == "finished"
        for name, values in points(event):
            if name not in last:
                last[name] = tracker.last_step(name)
            if event["step"] > last[name]:
                tracker.log(event["step"], values)
                last[name] = event["step"]
    tracker.close(has_failed=not has_finished)
    return tracker.url


def events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the run's events as they are written, until the run has ended and all are read."""
    path, offset = folder / "run" / "events.jsonl", 0
    while True:
        has_ended = (folder / END_FILE).exists()  # before the file is read: nothing is written to it afterwards
        complete = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                complete = file.read().rpartition(b"\n")[0]
        for line in filter(None, complete.split(b"\n")):
            yield json.loads(line)
        offset += len(complete) + bool(complete)
        if has_ended:
            return
        time.sleep(POLL_SECONDS)


def points(event: dict[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the event's metrics that are finite, with the name of the first, whose last step stands for all."""
    values: dict[str, float | None] = {}
    if event["type"] == "metrics":
        values = event["values"]
    elif event["type"] == "evaluation":
        kinds = ("avg_at_k", "avg_low", "avg_high", "pass_at_k", "pass_low", "pass_high")
        values = {f"{event['dataset']}/{kind}": event[kind] for kind in kinds}
    finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    if finite:
        yield next(iter(finite)), finite


def write_status(folder: Path, number: int, state: str, message: str = "", url: str = "") -> None:
    """Replace the status file in one step."""
    draft = folder / f"tracker-{number}.draft"
    draft.write_text(json.dumps({"state": state, "message": message, "url": url}), encoding="utf-8")
    draft.replace(status_file(folder, number))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
