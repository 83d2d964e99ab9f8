"""Starts an attempt's processes for trackers and hubs, records in the job how they go, and ends them after the run."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

from contract.events import NewEvent, notice
from contract.integrations import Integration
from contract.job_spec import JobSpec
from worker.attempt import Attempt
from worker.engine_process import child_environment
from worker.lease import LeaseLostError
from worker.periodic import ContextThread
from worker.progress import PASSING_DATABASE_ERRORS
from worker.trackers.follow import CONFIG_FILE, END_FILE, status_file

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
KEY_VARIABLES = {"wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_TOKEN", "hub": "HF_TOKEN"}
MAX_MESSAGE_CHARACTERS = 500


class Trackers:
    """A context manager around a run. It never raises, so that no tracker changes how an attempt ends."""

    def __init__(self, attempt: Attempt, spec: JobSpec) -> None:
        self._attempt = attempt
        self._spec = spec
        self._processes: list[subprocess.Popen[bytes] | None] = []
        self._states = [""] * len(spec.integrations)
        self._ended = threading.Event()
        self._thread = ContextThread(self._watch, f"trackers-{attempt.job_id}")

    def __enter__(self) -> Self:
        if self._spec.integrations:
            try:
                self._write_config()
                for number, integration in enumerate(self._spec.integrations):
                    self._processes.append(self._start(number, integration))
                self._thread.start()
            except OSError as error:
                logger.warning("trackers of %s were not started: %s", self._attempt.job_id, error)
        return self

    def __exit__(self, *_: object) -> None:
        """Let the processes send the rest, and kill those that take longer than they may."""
        if not self._thread.is_alive():
            return
        attempt, settings, began = self._attempt, self._attempt.settings, time.monotonic()
        (attempt.folder / END_FILE).touch()
        for process, integration in zip(self._processes, self._spec.integrations, strict=True):
            is_push = integration.type == "hub"
            deadline = began + (settings.hub_push_seconds if is_push else settings.tracker_grace_seconds)
            while process is not None and process.poll() is None:
                if time.monotonic() > deadline or attempt.is_lost() or (is_push and attempt.must_stop()):
                    process.kill()
                time.sleep(0.05)
        self._ended.set()
        self._thread.join()

    def _write_config(self) -> None:
        spec = self._spec.model_dump(mode="json")
        config = {
            "job_id": self._attempt.job_id,
            "name": self._spec.name or self._attempt.job_id,
            "spec": {name: value for name, value in spec.items() if name not in ("integrations", "prompts")},
            "integrations": spec["integrations"],
            "folder": str(self._attempt.settings.data_dir / "trackers"),
            "hub_network": self._attempt.settings.hub_network,
        }
        (self._attempt.folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")

    def _start(self, number: int, integration: Integration) -> subprocess.Popen[bytes] | None:
        try:
            environment = self._environment(integration)
        except ValueError as error:
            self._record(notice("warn", "tracker_not_started", f"{integration.type}: {error}"))
            return None
        folder = self._attempt.folder
        follow = [sys.executable, "-m", "worker.trackers.follow", str(folder), str(number)]
        with (folder / f"tracker-{number}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "worker.bound_exec", str(os.getpid()), *follow],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _environment(self, integration: Integration) -> dict[str, str]:
        """Return the process's environment; raises ValueError if the operator does not allow the key's variable."""
        environment = child_environment(os.environ)
        name = getattr(integration, "api_key_env", None)
        if name is None:
            return environment
        if name not in self._attempt.settings.integration_secrets:
            raise ValueError(f"api_key_env = {name}: the operator does not list it in TRD_INTEGRATION_SECRETS")
        if name not in os.environ:
            raise ValueError(f"api_key_env = {name}: this worker has no such variable; have the operator set it")
        return {**environment, KEY_VARIABLES[integration.type]: os.environ[name]}

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._report_changes()
        self._report_changes()
        for number, integration in enumerate(self._spec.integrations):
            if self._states[number] in ("done", "refused") or self._processes[number] is None:
                continue
            if integration.type == "hub":
                message = f"{integration.repo} did not get the checkpoint in time; the job has it."
                self._record(notice("warn", "push_incomplete", message))
            else:
                message = f"{integration.type} did not get all figures before the run's end; the job has them all."
                self._record(notice("warn", "tracker_incomplete", message))

    def _report_changes(self) -> None:
        for number, integration in enumerate(self._spec.integrations):
            status = self._status(number)
            if status["state"] == self._states[number]:
                continue
            before, self._states[number] = self._states[number], status["state"]
            message = f"{integration.type}: {self._without_keys(status['message'])}"
            message = message[:MAX_MESSAGE_CHARACTERS].rstrip(".")
            if integration.type == "hub":
                self._report_push(integration.repo, status, message)
            elif status["state"] == "failing":
                text = f"{message}. Training continues; the figures are sent when the tracker answers."
                self._record(notice("warn", "tracker_failing", text))
            elif before == "failing":
                self._record(notice("info", "tracker_recovered", f"{integration.type} answers again."))
            elif not before and status["url"]:
                shown = f"Figures are reported to {integration.type}: {status['url']}"
                self._record(notice("info", "tracker_started", shown, url=status["url"]))

    def _report_push(self, repo: str, status: Mapping[str, Any], message: str) -> None:
        if status["state"] == "failing":
            self._record(notice("warn", "push_failing", f"{message}. The push to {repo} is tried again."))
        elif status["state"] == "refused":
            self._record(notice("warn", "push_refused", f"{message}. The job has the checkpoint."))
        elif status["url"]:  # without one the run has not finished
            text = f"The checkpoint was pushed: {status['url']}"
            self._record(notice("info", "checkpoint_pushed", text, url=status["url"]))

    def _status(self, number: int) -> Mapping[str, Any]:
        path = status_file(self._attempt.folder, number)
        if not path.exists():
            return {"state": "", "message": "", "url": ""}
        status: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return status

    def _without_keys(self, message: str) -> str:
        """Remove secrets that a library may have put in its error: users read it."""
        for name in {*KEY_VARIABLES.values(), *self._attempt.settings.integration_secrets}:
            if value := os.environ.get(name):
                message = message.replace(value, "[redacted]")
        return re.sub(r"://[^/\s@]*@", "://[redacted]@", message)

    def _record(self, event: NewEvent) -> None:
        try:
            self._attempt.record(event)
        except (LeaseLostError, *PASSING_DATABASE_ERRORS) as error:
            logger.warning("an event of a tracker of %s is lost: %s", self._attempt.job_id, error)
