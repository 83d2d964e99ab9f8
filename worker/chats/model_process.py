"""A model that answers in a child process: ``python -m trd_engine chat``, JSON lines in both directions."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.engine_log import LogRelay
from worker.engine_process import child_environment
from worker.failures import log_tail, public_text


class ModelEndedError(Exception):
    """The child ended; the message says why, for the user."""


class ModelProcess:
    """The child of one model. Use it from the thread that started it, which the child does not outlive."""

    def __init__(self, source: str, log: Path) -> None:
        """Start the child; `source` is a folder, a hub id, or the description of a served teacher as JSON."""
        command = [sys.executable, "-m", "trd_engine", "chat", source]
        bound = [sys.executable, "-m", "worker.bound_exec", str(os.getpid()), *command]
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                bound,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(os.environ),
                start_new_session=True,
                text=True,
                encoding="utf-8",
            )
        self._relay = LogRelay(log)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="chat-reader", daemon=True)
        self._reader.start()

    def ask(self, question: dict[str, Any]) -> None:
        """Send a question; its parts come from `next_parts`."""
        assert self._process.stdin is not None, "asked for a pipe"
        with suppress(BrokenPipeError):  # `next_parts` reports that the child has ended
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()

    def next_parts(self, wait_seconds: float) -> list[dict[str, Any]]:
        """Return the documents that came since the last call, after waiting for one; raise `ModelEndedError`."""
        parts: list[dict[str, Any]] = []
        with suppress(queue.Empty):
            line = self._lines.get(timeout=wait_seconds)
            while True:
                if not line:
                    if parts:
                        self._lines.put("")
                        return parts
                    tail = log_tail(self._log).strip().rpartition("\n")[2] or "it wrote no reason"
                    raise ModelEndedError(f"The model's process ended: {public_text(Exception(tail))}")
                parts.append(json.loads(line))
                line = self._lines.get_nowait()
        return parts

    def close(self) -> None:
        """Kill the child, which frees its memory."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        self._relay.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None, "asked for a pipe"
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")
