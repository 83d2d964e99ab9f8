"""What a checkpoint keeps of trajectories: the round's and the held-out ones, with a served teacher's scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trd_engine.prompts import PromptBuilder
from trd_engine.served_scores import with_stored_scores, write_scores
from trd_engine.trajectory_file import read_trajectories, write_trajectories
from trd_engine.types import Problem, Trajectory


@dataclass(frozen=True)
class KeptTrajectories:
    """Two files of a checkpoint's state folder; the second is there where a served teacher gave scores."""

    trajectories_name: str
    scores_name: str

    def write(self, folder: Path, trajectories: Sequence[Trajectory], prompts: PromptBuilder) -> None:
        """Both files, each whole or not at all."""
        write_trajectories(folder / self.trajectories_name, trajectories, prompts)
        write_scores(folder / self.scores_name, trajectories)

    def read(self, folder: Path, problems: Iterable[Problem]) -> list[Trajectory] | None:
        """What `write` wrote; None where it wrote nothing."""
        path = folder / self.trajectories_name
        if not path.exists():
            return None
        return with_stored_scores(folder / self.scores_name, read_trajectories(path, problems))


ROUND = KeptTrajectories("trajectories.jsonl", "teacher_scores.safetensors")
HELDOUT = KeptTrajectories("heldout.jsonl", "heldout_teacher_scores.safetensors")
