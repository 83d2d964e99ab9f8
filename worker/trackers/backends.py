"""The trackers, each by its own library, which is imported when its run is opened.

Each finds out from the tracker itself which steps it has, so that a resumed attempt repeats none.
"""

from __future__ import annotations

import os
import posixpath
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit


@dataclass(frozen=True)
class RunFacts:
    """The job whose figures are reported."""

    job_id: str
    name: str
    spec: Mapping[str, Any]
    folder: Path
    """Folder in which trackers without a server keep their files."""


class Tracker(Protocol):
    """An open run of a tracker. Every call raises the library's errors if the tracker cannot be reached."""

    url: str
    """Address at which a person sees the run; empty if there is none."""

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


class MlflowTracker:
    """MLflow chooses the ids of runs, so that a tag with the job's id finds the run again."""

    def __init__(self, settings: Mapping[str, Any], run: RunFacts) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            raise ValueError("MLFLOW_TRACKING_URI is not set on the worker; have the operator set it")
        # An outage is reported at once, and the caller tries again; MLflow's own retries take minutes in silence.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = client = MlflowClient()
        known = client.get_experiment_by_name(settings["project"])
        experiment = known.experiment_id if known else client.create_experiment(settings["project"])
        found = client.search_runs([experiment], f"tags.trd_job = '{run.job_id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            tags = {"trd_job": run.job_id, "mlflow.runName": settings["name"] or run.name}
            self._id = client.create_run(experiment, tags=tags).info.run_id
        # Also to a run that was found: the connection may have broken before it had them. Most parameters: 100 a call.
        params = [Param(_mlflow_name(name), value[:6000]) for name, value in _flat(run.spec)]
        for start in range(0, len(params), 100):
            client.log_batch(self._id, params=params[start : start + 100])
        parts = urlsplit(address)  # a person sees the URL, which may hold the operator's password
        host = parts.netloc.rpartition("@")[2]
        is_web = parts.scheme in ("http", "https")
        page = f"#/experiments/{experiment}/runs/{self._id}"
        self.url = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/{page}" if is_web else ""

    def last_step(self, name: str) -> int:
        points = self._client.get_metric_history(self._id, _mlflow_name(name))
        return max((int(point.step) for point in points), default=-1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_mlflow_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, has_failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if has_failed else "FINISHED")


def _flat(spec: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the spec's fields with dotted names."""
    fields: list[tuple[str, str]] = []
    for key, value in spec.items():
        fields += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", str(value))]
    return fields


def _mlflow_name(name: str) -> str:
    """Return the name without what MLflow refuses: other signs than these, and paths that are not normal."""
    return posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", name)).lstrip("./")[:250] or "_"


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
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}
