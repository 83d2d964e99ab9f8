"""A child that speaks the engine's protocol by a script, for the tests of the worker: no model, no torch.

``python scripted_engine.py ATTEMPT_DIR PLAN``; PLAN is the JSON of a `Plan`. It "trains" by counting, and
its checkpoint is the count, so that a run which was resumed can be distinguished from a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What the child does."""

    num_steps: int = 4
    step_seconds: float = 0.0
    checkpoint_every: int = 2
    die_at_step: int | None = None
    """Ends by signal 9 before this step, in the first attempt only if `die_once`."""
    die_once: bool = True
    exit_code_at_end: int = 0
    failure: tuple[str, str] | None = None
    """Reported at the end: code and message."""
    is_deaf: bool = False
    """Ignores SIGTERM."""
    prints: str = ""
    writes_finished: bool = True
    leaves_process_behind: bool = False

    def to_json(self) -> str:
        """Return the plan as JSON, for the command line."""
        return json.dumps(asdict(self))


class Script:
    """One run of the script."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.run = folder / "run"
        self.run.mkdir()
        self.is_asked_to_stop = False
        (folder / "pid").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN if plan.is_deaf else self._stop)

    def _stop(self, *_: object) -> None:
        self.is_asked_to_stop = True

    def event(self, type_: str, **fields: Any) -> None:
        """Append an event."""
        with (self.run / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"type": type_, "at": time.time(), **fields}) + "\n")

    def play(self) -> int:
        """Play the whole run; return the exit code."""
        sys.stdout.write(self.plan.prints)
        sys.stdout.flush()
        if self.plan.leaves_process_behind:
            self._leave_process_behind()
        step = self._resumed_step()
        total = self.plan.num_steps
        self.event("phase", phase="rollout", round=0, num_rounds=1, step=step, num_steps=total)
        self._trajectories()
        if step == 0:
            self._evaluate(0)
        self.event("phase", phase="training", round=0, num_rounds=1, step=step, num_steps=total)
        while step < total:
            if self.is_asked_to_stop:
                self._checkpoint(step)
                return 75
            self._maybe_die(step + 1)
            time.sleep(self.plan.step_seconds)
            step += 1
            self.event("metrics", step=step, round=0, values={"loss": 1.0 / step, "grad_norm": None})
            self.event("progress", phase="training", done=step, total=total, unit="steps", eta_seconds=1.5)
            if step % self.plan.checkpoint_every == 0 or step == total:
                self._checkpoint(step)
        return self._end(step)

    def _end(self, step: int) -> int:
        if self.plan.failure is not None:
            code, message = self.plan.failure
            self.event("failed", code=code, message=message, traceback="Traceback: line 1")
            return 1
        if self.plan.writes_finished:
            self._evaluate(step)
            self.event("finished", step=step, summary={"seconds_by_phase": {"training": 1.0}})
        return self.plan.exit_code_at_end

    def _resumed_step(self) -> int:
        state = self.folder / "resume" / "state" / "count.json"
        return int(json.loads(state.read_text())["step"]) if state.exists() else 0

    def _maybe_die(self, step: int) -> None:
        is_first = self.folder.name == "attempt-0001"
        if step == self.plan.die_at_step and (is_first or not self.plan.die_once):
            os.kill(os.getpid(), signal.SIGKILL)

    def _checkpoint(self, step: int) -> None:
        folder = self.run / "checkpoints" / f"step-{step:08d}"
        if folder.exists():
            return
        model = {"model/README.md": "---\n---\n# card\n", "model/model.safetensors": "weights " * step}
        files = {"state/count.json": json.dumps({"step": step}), **model}
        listed = []
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            listed.append({"name": name, "num_bytes": len(text), "sha256": digest})
        manifest = {"step": step, "formats": ["full"], "files": listed, "metrics": {"loss": 0.5}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        self.event("checkpoint", step=step, path=f"checkpoints/{folder.name}")

    def _evaluate(self, step: int) -> None:
        scores = {"avg_at_k": 0.5, "avg_low": 0.4, "avg_high": 0.6, "pass_at_k": 0.7, "pass_low": 0.6, "pass_high": 0.8}
        self.event("evaluation", step=step, dataset="holdout", k=4, num_problems=10, detail={}, **scores)

    def _trajectories(self) -> None:
        path = self.run / "rounds" / "0000" / "trajectories.jsonl"
        path.parent.mkdir(parents=True)
        lines = [json.dumps(self._trajectory(position)) for position in range(3)]
        path.write_text("\n".join(lines) + "\n")
        self.event("trajectories", path="rounds/0000/trajectories.jsonl", round=0, num=3)

    def _trajectory(self, position: int) -> dict[str, Any]:
        return {
            "position": position,
            "problem_id": f"p{position}",
            "sample": 0,
            "prompt": "1+1=",
            "answer": "2",
            "rollout": "3\u0000",
            "refined": "2",
            "rollout_correct": False,
            "refined_correct": True,
            "rollout_tokens": 1,
            "refined_tokens": 1,
            "detail": {},
        }

    def _leave_process_behind(self) -> None:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        (self.folder / "left_behind").write_text(str(pid))


if __name__ == "__main__":
    sys.exit(Script(Path(sys.argv[1]), Plan(**json.loads(sys.argv[2]))).play())
