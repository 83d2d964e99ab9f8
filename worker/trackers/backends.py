"""The trackers, each by its own library, which is imported when its run is opened.

Each finds out from the tracker itself which steps it has, so that a resumed attempt repeats none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunFacts:
    """The job whose figures are reported."""

    job_id: str
    name: str
    spec: Mapping[str, Any]
    folder: Path
    """Where trackers without a server keep their files."""


class Tracker(Protocol):
    """An open run of a tracker. Every call raises the library's errors if the tracker cannot be reached."""

    url: str
    """Where a person sees the run; empty if there is no address."""

    def last_step(self, name: str) -> int:
        """Return the last step at which the run has the metric; -1 if it has none."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report metrics of one step."""
        ...

    def close(self, *, has_failed: bool) -> None:
        """Send what is left and end the run."""
        ...


class TensorboardTracker:
    """Event files; every process writes one more into the run's folder."""

    def __init__(self, settings: Mapping[str, Any], run: RunFacts) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.summary import Writer

        folder = run.folder / "tensorboard" / run.job_id
        folder.mkdir(parents=True, exist_ok=True)
        self.url = str(folder)
        stored = EventAccumulator(self.url, size_guidance={"tensors": 0})
        stored.Reload()
        self._last = {tag: max(point.step for point in stored.Tensors(tag)) for tag in stored.Tags()["tensors"]}
        self._writer = Writer(self.url)

    def last_step(self, name: str) -> int:
        return int(self._last.get(name, -1))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, has_failed: bool) -> None:
        self._writer.close()


class WandbTracker:
    """Its steps only rise: it ignores values of earlier ones by itself."""

    def __init__(self, settings: Mapping[str, Any], run: RunFacts) -> None:
        import wandb

        folder = run.folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=settings["project"],
            entity=settings["entity"],
            name=settings["name"] or run.name,
            tags=settings["tags"],
            id=run.job_id,
            resume="allow",
            config=dict(run.spec),
            dir=str(folder),
            settings=wandb.Settings(console="off", disable_git=True, x_disable_stats=True, silent=True),
        )
        self.url = self._run.url or ""

    def last_step(self, name: str) -> int:
        return self._run.step - 1 if self._run.resumed else -1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, has_failed: bool) -> None:
        self._run.finish(exit_code=int(has_failed))


class TrackioTracker:
    """Its run has the job's id as its name."""

    def __init__(self, settings: Mapping[str, Any], run: RunFacts) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run.folder / "trackio"))
        import trackio

        self._trackio = trackio
        self._project, self._name = settings["project"], run.job_id
        trackio.init(project=self._project, name=self._name, resume="allow", config=dict(run.spec))
        self.url = ""

    def last_step(self, name: str) -> int:
        from trackio.sqlite_storage import SQLiteStorage

        points = SQLiteStorage.get_logs(self._project, self._name)
        return max((int(point["step"]) for point in points if name in point), default=-1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self, *, has_failed: bool) -> None:
        self._trackio.finish()


BACKENDS: dict[str, Callable[[Mapping[str, Any], RunFacts], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}
