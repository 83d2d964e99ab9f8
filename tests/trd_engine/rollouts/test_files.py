"""A round's files are whole or not there, and are written once."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from trd_data.prompts import PromptBuilder
from trd_engine.rollouts.files import ROUND, DiagnosedTokens, write_diagnosed
from trd_engine.types import Completion, Problem, Trajectory, Verdict

PROBLEMS = [Problem(str(number), "1 + 1?", "2") for number in range(3)]
ROLLOUTS = [
    Trajectory(problem, 0, array("i", [1, 2]), Completion(array("i", [3, 4, 5]), "½ é", "stop"), Verdict(True, "2"))
    for problem in PROBLEMS
]


class Prompts:
    """Shows a prompt's ids; fails at the prompt of that number, as a process may end at any moment."""

    def __init__(self, fails_at: int | None = None) -> None:
        self._left = fails_at

    def decode_prompt(self, token_ids: Sequence[int]) -> str:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        return str(token_ids)


def prompts(fails_at: int | None = None) -> PromptBuilder:
    return cast(PromptBuilder, Prompts(fails_at))


def test_a_writer_that_is_ended_leaves_nothing_or_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ROUND.write(tmp_path, ROLLOUTS, prompts(fails_at=2))
    assert ROUND.read(tmp_path, PROBLEMS) is None
    ROUND.write(tmp_path, ROLLOUTS[:1], prompts())
    with pytest.raises(KeyboardInterrupt):
        ROUND.write(tmp_path, ROLLOUTS, prompts(fails_at=2))
    assert ROUND.read(tmp_path, PROBLEMS) == ROLLOUTS[:1]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_linked_round_is_read_back_and_outlives_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:

        def refuse(path: Path, target: Path) -> None:
            raise PermissionError(1, "no hard links here", str(path))

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    source, first, second = (tmp_path / name for name in ("source", "first", "second"))
    ROUND.write(source, ROLLOUTS, prompts())
    for _ in range(2):  # a file that is there is replaced
        ROUND.link(source, first)
    ROUND.link(first, second)
    assert second.joinpath("trajectories.jsonl").samefile(source / "trajectories.jsonl") == has_links
    (source / "trajectories.jsonl").unlink()
    assert ROUND.read(first, PROBLEMS) == ROUND.read(second, PROBLEMS) == ROLLOUTS
    assert [path.name for path in second.iterdir()] == ["trajectories.jsonl"]


def test_what_the_diagnosis_found_is_added_to_a_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "trajectories.jsonl", tmp_path / "shown" / "trajectories.jsonl"
    ROUND.write(tmp_path, ROLLOUTS, prompts())
    before = source.read_bytes()
    write_diagnosed(target, source, {1: DiagnosedTokens((0.5, None, 0.25), None, {"lengths": None})})
    assert source.read_bytes() == before
    old, new = before.splitlines(), target.read_bytes().splitlines()
    assert (new[0], new[2], len(new)) == (old[0], old[2], 3)
    assert json.loads(new[1]) == json.loads(old[1]) | {
        "kl_per_token_rollout": [0.5, None, 0.25],
        "kl_per_token_refined": None,
        "token_detail": {"lengths": None},
    }
