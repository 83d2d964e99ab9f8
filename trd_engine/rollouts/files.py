"""A round's trajectories on disk: what the service shows, and what a resumed run trains on."""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save_file

from trd_data.prompts import PromptBuilder
from trd_engine.types import Completion, Problem, TokenScores, Trajectory, Verdict


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
    steps: Mapping[int, int] | None = None,
) -> None:
    """Write one JSON line per trajectory; the file appears complete or not at all.

    `steps` has the first step that trains on a position, written as ``step``.
    """
    with whole_file(path) as file:
        for position, trajectory in enumerate(trajectories):
            line = trajectory_to_json(position, trajectory, prompts.decode_prompt(trajectory.prompt_token_ids))
            if steps is not None:
                line["step"] = steps.get(position)
            file.write(_line(line))


def write_diagnosed(path: Path, source: Path, diagnosed: Mapping[int, DiagnosedTokens]) -> None:
    """Write the trajectories of the file `source`, those at the positions of `diagnosed` with ``kl_per_token_rollout``,
    ``kl_per_token_refined`` and ``token_detail``. If there are none, `path` becomes a link to `source`."""
    if not diagnosed:
        path.parent.mkdir(parents=True, exist_ok=True)
        _link(source, path)
        return
    with whole_file(path) as file, source.open("rb") as lines:
        for position, line in enumerate(lines):
            if found := diagnosed.get(position):
                own = {"kl_per_token_rollout": found.kl_rollout, "kl_per_token_refined": found.kl_refined}
                line = _line(json.loads(line) | own | {"token_detail": found.detail})
            file.write(line)


def _line(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that appears at `path` once it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _link(source: Path, path: Path) -> None:
    """Let `path` be the same file as `source`, or a copy if the file system has no hard links."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(path)
    temporary.unlink(missing_ok=True)  # a file is not renamed to another of its names


def read_trajectories(path: Path, problems: Iterable[Problem]) -> list[Trajectory]:
    """Return the trajectories in the file, with the problems they belong to."""
    by_id = {problem.id: problem for problem in problems}
    with path.open(encoding="utf-8") as file:
        return [trajectory_from_json(json.loads(line), by_id) for line in file]


def trajectory_to_json(position: int, trajectory: Trajectory, prompt: str) -> dict[str, Any]:
    """Return a trajectory as a JSON object; `prompt` is its solving prompt as readable text."""
    refined, verdict, refine_prompt = trajectory.refined, trajectory.refined_verdict, trajectory.refine_prompt_token_ids
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
            "prompt": list(trajectory.prompt_token_ids),
            "rollout": list(trajectory.rollout.token_ids),
            "refine_prompt": None if refine_prompt is None else list(refine_prompt),
            "refined": list(refined.token_ids) if refined else None,
        },
    }


def trajectory_from_json(line: Mapping[str, Any], problems: Mapping[str, Problem]) -> Trajectory:
    """Return the trajectory of `trajectory_to_json`; `problems` has the one it belongs to by its id."""
    ids, detail = line["token_ids"], line["detail"]
    refined = ids["refined"] is not None
    return Trajectory(
        problem=problems[line["problem_id"]],
        sample=line["sample"],
        prompt_token_ids=array("i", ids["prompt"]),
        rollout=Completion(array("i", ids["rollout"]), line["rollout"], detail["rollout_finish_reason"]),
        rollout_verdict=_verdict(line, "rollout"),
        refine_prompt_token_ids=array("i", ids["refine_prompt"]) if refined else None,
        refined=Completion(array("i", ids["refined"]), line["refined"], detail["refined_finish_reason"])
        if refined
        else None,
        refined_verdict=_verdict(line, "refined") if line["refined_correct"] is not None else None,
        notices=tuple(detail["notices"]),
    )


def _verdict(line: Mapping[str, Any], of: str) -> Verdict:
    detail = line["detail"]
    return Verdict(line[f"{of}_correct"], detail[f"{of}_verdict"], detail.get(f"{of}_verdict_failure"))


def write_scores(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write the scores of a round beside its trajectories; write no file if there are none."""
    scores = [t.scores for t in trajectories if t.scores is not None]
    if not scores:
        return
    whole = TokenScores.concatenated(scores, torch.device("cpu"))
    tensors = {
        "token_ids": whole.token_ids_TK.to(torch.int32),
        "logprobs": whole.logprobs_TK,
        "target_logprobs": whole.target_logprobs_T,
        "lengths": torch.tensor([len(s.target_logprobs_T) for s in scores]),
    }
    save_file(tensors, path)


def with_stored_scores(path: Path, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Return the trajectories with the scores in the file of `write_scores`, or unchanged if there is no file."""
    if not path.exists():
        return list(trajectories)
    tensors = load_file(path)
    lengths = tensors["lengths"].tolist()
    columns = (tensors[name].split(lengths) for name in ("token_ids", "logprobs", "target_logprobs"))
    scores = (TokenScores(*parts) for parts in zip(*columns, strict=True))
    return [replace(trajectory, scores=one) for trajectory, one in zip(trajectories, scores, strict=True)]


@dataclass(frozen=True)
class KeptTrajectories:
    """Two files of a checkpoint's state folder; the second exists if a served teacher gave scores."""

    trajectories_name: str
    scores_name: str

    def write(
        self,
        folder: Path,
        trajectories: Sequence[Trajectory],
        prompts: PromptBuilder,
        *,
        steps: Mapping[int, int] | None = None,
    ) -> None:
        """Write both files, each whole or not at all; `steps` as in `write_trajectories`."""
        (folder / self.scores_name).unlink(missing_ok=True)
        write_trajectories(folder / self.trajectories_name, trajectories, prompts, steps=steps)
        write_scores(folder / self.scores_name, trajectories)

    def link(self, source: Path, folder: Path) -> None:
        """Let `folder` have the files that `write` wrote to the folder `source`, without writing them again."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (self.trajectories_name, self.scores_name):
            if (source / name).exists():
                _link(source / name, folder / name)

    def read(self, folder: Path, problems: Iterable[Problem]) -> list[Trajectory] | None:
        """Return what `write` wrote; None if it wrote nothing."""
        path = folder / self.trajectories_name
        if not path.exists():
            return None
        return with_stored_scores(folder / self.scores_name, read_trajectories(path, problems))


def round_folder(out_dir: Path, round_index: int) -> Path:
    """Return the folder of a round's files in the output of a run."""
    return out_dir / "rounds" / f"{round_index:04d}"


ROUND = KeptTrajectories("trajectories.jsonl", "teacher_scores.safetensors")


HELDOUT = KeptTrajectories("heldout.jsonl", "heldout_teacher_scores.safetensors")
