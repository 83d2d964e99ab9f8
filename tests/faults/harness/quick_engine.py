"""A small engine for the soak: it trains a vector, in the phases and with the files and events of the real one.

``python quick_engine.py ATTEMPT_DIR`` starts in a tenth of a second, so that hundreds of jobs are run and killed in
minutes. Its weights depend on every step before, so that a step that is left out or taken twice shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

NUM_ROUNDS, STEPS_A_ROUND, NUM_TRAJECTORIES = 2, 2, 4
PHASE_SECONDS = float(os.environ.get("QUICK_PHASE_SECONDS", "0.2"))
STOPPED_EXIT_CODE = 75


class StopRequestedError(Exception):
    """The supervisor asked the engine to stop."""


class Run:
    """One attempt."""

    def __init__(self, folder: Path) -> None:
        self.out_dir = folder / "run"
        self.out_dir.mkdir()
        self.step, self.weights = 0, [0.0] * 64
        state = folder / "resume" / "state" / "state.json"
        if state.exists():
            self.step, self.weights = json.loads(state.read_text())
        self.saved_step = self.step if state.exists() else -1
        self.is_asked_to_stop = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.is_asked_to_stop = True

    @property
    def round(self) -> int:
        """Index of the round of the next step."""
        return min(self.step // STEPS_A_ROUND, NUM_ROUNDS - 1)

    def event(self, type_: str, **fields: Any) -> None:
        """Append an event."""
        with (self.out_dir / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"type": type_, "at": time.time(), **fields}) + "\n")

    def enter(self, phase: str) -> None:
        """Enter a phase, spend its time, and stop if that was asked for."""
        num_steps = NUM_ROUNDS * STEPS_A_ROUND
        self.event("phase", phase=phase, round=self.round, num_rounds=NUM_ROUNDS, step=self.step, num_steps=num_steps)
        time.sleep(PHASE_SECONDS)
        if self.is_asked_to_stop:
            raise StopRequestedError

    def train(self) -> None:
        """Train from the current position to the end of the run."""
        self.enter("preparing")
        if self.step == 0:
            self.evaluate()
        while self.step < NUM_ROUNDS * STEPS_A_ROUND:
            if self.step % STEPS_A_ROUND == 0:
                self.enter("rollout")
                self.enter("refining")
                self.trajectories()
                self.enter("diagnosing")
            self.enter("training")
            draw = random.Random(self.step)
            self.weights = [weight * 0.9 + draw.random() for weight in self.weights]
            self.step += 1
            self.event("metrics", step=self.step, round=self.round, values={"loss": sum(self.weights)})
            if self.step == NUM_ROUNDS * STEPS_A_ROUND:
                self.evaluate()
            self.save()
        self.event("finished", step=self.step, summary={})

    def evaluate(self) -> None:
        """Report scores."""
        self.enter("evaluating")
        names = ("avg_at_k", "avg_low", "avg_high", "pass_at_k", "pass_low", "pass_high")
        scores = dict.fromkeys(names, self.weights[0] / 100)
        self.event("evaluation", step=self.step, dataset="holdout", k=1, num_problems=4, **scores)

    def trajectories(self) -> None:
        """Write the round's."""
        path = self.out_dir / "rounds" / f"{self.round:04d}" / "trajectories.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        same = {"sample": 0, "prompt": "?", "answer": "2", "refined": "2", "rollout_correct": False, "detail": {}}
        same |= {"refined_correct": True, "rollout_tokens": 1, "refined_tokens": 1}
        rows = [
            {"position": position, "problem_id": f"p{position}", "rollout": str(self.weights[position]), **same}
            for position in range(NUM_TRAJECTORIES)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.event("trajectories", path=str(path.relative_to(self.out_dir)), round=self.round, num=NUM_TRAJECTORIES)

    def save(self) -> None:
        """Save a checkpoint, its manifest last."""
        self.event(
            "phase", phase="saving", round=self.round, num_rounds=NUM_ROUNDS, step=self.step,
            num_steps=NUM_ROUNDS * STEPS_A_ROUND,
        )  # fmt: skip
        time.sleep(PHASE_SECONDS)
        folder = self.out_dir / "checkpoints" / f"step-{self.step:08d}"
        draft = folder.with_name(f".{folder.name}")
        shutil.rmtree(draft, ignore_errors=True)
        files = {
            "model/model.safetensors": json.dumps(self.weights) * 100,
            "state/state.json": json.dumps([self.step, self.weights]),
        }
        for name, text in files.items():
            (draft / name).parent.mkdir(parents=True)
            (draft / name).write_text(text)
        listed = [
            {"name": name, "num_bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            for name, text in files.items()
        ]
        manifest = {"step": self.step, "formats": ["full"], "files": listed}
        (draft / "manifest.json").write_text(json.dumps(manifest))
        draft.rename(folder)
        self.saved_step = self.step
        self.event("checkpoint", step=self.step, path=f"checkpoints/{folder.name}")


def main(folder: Path) -> int:
    """Run, and return the exit code."""
    run = Run(folder)
    try:
        run.train()
    except StopRequestedError:
        # The last step is taken again: its scores are still missing.
        if run.step not in (0, run.saved_step, NUM_ROUNDS * STEPS_A_ROUND):
            run.save()
        return STOPPED_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
