"""A round's trajectories on disk: what the service shows, and what a resumed run trains on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_data.prompts import PromptBuilder
from trd_engine.teachers.token_scores import with_stored_scores, write_scores
from trd_engine.types import Completion, Problem, Trajectory, Verdict


@dataclass(frozen=True)
class DiagnosedTokens:
    """What the diagnosis found token by token in y_o and in y_r, as JSON values."""

    kl_rollout: Sequence[float | None]
    """Forward KL of each token, nats; None if it is not finite."""
    kl_refined: Sequence[float | None] | None
    detail: Mapping[str, Any]
    """``lengths``: the number of characters that each token writes; ``alternatives``: what both models would rather
    have written at some tokens; each with ``rollout`` and ``refined``, null if unknown. ``first_wrong_step``: its first
    token in y_o and the first token after it, or null."""


def write_trajectories(
    path: Path,
    trajectories: Sequence[Trajectory],
    prompts: PromptBuilder,
    *,
    diagnosed: Mapping[int, DiagnosedTokens] | None = None,
    steps: Mapping[int, int] | None = None,
) -> None:
    """Write one JSON line per trajectory; the file appears complete or not at all.

    Trajectories whose position is in `diagnosed` also get ``kl_per_token_rollout``, ``kl_per_token_refined`` and
    ``token_detail``. `steps` has the first step that trains on a position, written as ``step``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for position, trajectory in enumerate(trajectories):
            line = trajectory_to_json(position, trajectory, prompts.decode_prompt(trajectory.prompt_token_ids))
            if steps is not None:
                line["step"] = steps.get(position)
            if found := (diagnosed or {}).get(position):
                line |= {"kl_per_token_rollout": found.kl_rollout, "kl_per_token_refined": found.kl_refined}
                line["token_detail"] = found.detail
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_trajectories(path: Path, problems: Iterable[Problem]) -> list[Trajectory]:
    """Return the trajectories in the file, with the problems they belong to."""
    by_id = {problem.id: problem for problem in problems}
    with path.open(encoding="utf-8") as file:
        return [trajectory_from_json(json.loads(line), by_id) for line in file]


def trajectory_to_json(position: int, trajectory: Trajectory, prompt: str) -> dict[str, Any]:
    """Return a trajectory as a JSON object; `prompt` is its solving prompt as readable text."""
    refined, verdict = trajectory.refined, trajectory.refined_verdict
    return {
        "position": position,
        "problem_id": trajectory.problem.id,
        "sample": trajectory.sample,
        "prompt": prompt,
        "answer": trajectory.problem.answer,
        "rollout": trajectory.rollout.text,
        "refined": refined.text if refined else None,
        "rollout_correct": trajectory.rollout_verdict.correct,
        "refined_correct": verdict.correct if verdict else None,
        "rollout_tokens": len(trajectory.rollout.token_ids),
        "refined_tokens": len(refined.token_ids) if refined else None,
        "parts_at_token": trajectory.parts_at_token,
        "detail": {
            "rollout_finish_reason": trajectory.rollout.finish_reason,
            "refined_finish_reason": refined.finish_reason if refined else None,
            "rollout_verdict": trajectory.rollout_verdict.detail,
            "refined_verdict": verdict.detail if verdict else None,
            "rollout_verdict_failure": trajectory.rollout_verdict.failure,
            "refined_verdict_failure": verdict.failure if verdict else None,
            "notices": list(trajectory.notices),
        },
        "token_ids": {
            "prompt": trajectory.prompt_token_ids,
            "rollout": trajectory.rollout.token_ids,
            "refine_prompt": trajectory.refine_prompt_token_ids,
            "refined": refined.token_ids if refined else None,
        },
    }


def trajectory_from_json(line: Mapping[str, Any], problems: Mapping[str, Problem]) -> Trajectory:
    """Return the trajectory of `trajectory_to_json`; `problems` has the one it belongs to by its id."""
    ids, detail = line["token_ids"], line["detail"]
    refined = ids["refined"] is not None
    return Trajectory(
        problem=problems[line["problem_id"]],
        sample=line["sample"],
        prompt_token_ids=tuple(ids["prompt"]),
        rollout=Completion(tuple(ids["rollout"]), line["rollout"], detail["rollout_finish_reason"]),
        rollout_verdict=_verdict(line, "rollout"),
        refine_prompt_token_ids=tuple(ids["refine_prompt"]) if refined else None,
        refined=Completion(tuple(ids["refined"]), line["refined"], detail["refined_finish_reason"])
        if refined
        else None,
        refined_verdict=_verdict(line, "refined") if line["refined_correct"] is not None else None,
        notices=tuple(detail["notices"]),
    )


def _verdict(line: Mapping[str, Any], of: str) -> Verdict:
    detail = line["detail"]
    return Verdict(line[f"{of}_correct"], detail[f"{of}_verdict"], detail.get(f"{of}_verdict_failure"))


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
        """Return what `write` wrote; None if it wrote nothing."""
        path = folder / self.trajectories_name
        if not path.exists():
            return None
        return with_stored_scores(folder / self.scores_name, read_trajectories(path, problems))


ROUND = KeptTrajectories("trajectories.jsonl", "teacher_scores.safetensors")


HELDOUT = KeptTrajectories("heldout.jsonl", "heldout_teacher_scores.safetensors")
