"""What the processes tell one another, and that none is left behind, hangs for good or leaves too early."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.trd_engine import rank_runs, rank_scenes
from tests.trd_engine.forked import fork_ranks
from tests.trd_engine.tiny_runs import spec, write_data
from tests.trd_engine.torchrun import scene
from tests.worker.workbench import eventually, process_exists
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest

pytestmark = pytest.mark.xdist_group("ranks")


def test_uneven_parts_are_put_together_as_they_were_taken_apart(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert fork_ranks(rank_scenes.exchange, tmp_path, num_processes=3, log=log) == [0, 0, 0], log.read_text()


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with scene("rank_scenes", "last", str(tmp_path), num_processes=2) as launcher:
        try:
            eventually(lambda: len(list(tmp_path.iterdir())) == 2, seconds=90)
        finally:
            launcher.kill()
    for path in tmp_path.iterdir():
        eventually(lambda path=path: not process_exists(int(path.name)))  # type: ignore[misc]


@pytest.mark.slow
def test_a_wait_is_patient_and_a_pass_is_not(tmp_path: Path) -> None:
    started_at = time.monotonic()
    with scene("rank_scenes", "stall", str(tmp_path), num_processes=2) as launcher:
        printed, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert printed.count("waited") == 2
    assert "imed out" in printed
    assert time.monotonic() - started_at < 100


@pytest.mark.slow
def test_a_stop_leaves_a_checkpoint_however_long_that_takes(tmp_path: Path) -> None:
    changes = {"diagnosis": {"num_trajectories": 0}, "evaluation": {"holdout": 0.0}}
    document = spec(write_data(tmp_path / "data", train=16), devices=2, mode="opd", loss={}, **changes)
    document |= {"checkpoints": {"every_steps": 100}, "optim": {"batch_size": 8}}
    (tmp_path / "spec.json").write_text(json.dumps(document), encoding="utf-8")
    with scene("rank_runs", "stop", str(tmp_path), num_processes=2, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1") as launcher:
        printed, _ = launcher.communicate(timeout=200)
    saved = checkpoint_folder(tmp_path / "out", 1)
    assert saved.is_dir(), printed
    assert verify_manifest(saved)["step"] == 1


@pytest.mark.slow
def test_every_process_names_the_trajectories_of_all_and_the_broken_one(tmp_path: Path) -> None:
    """The second process's token is not finite; the first one, which reports the failure, has to say so too."""
    changes = {"diagnosis": {"num_trajectories": 0}, "evaluation": {"holdout": 0.0}}
    document = spec(write_data(tmp_path / "data", train=16), devices=2, mode="opd", loss={}, **changes)
    (tmp_path / "spec.json").write_text(json.dumps(document), encoding="utf-8")
    log = tmp_path / "log"
    assert fork_ranks(rank_runs.break_a_token, tmp_path, num_processes=2, log=log) == [0, 0], log.read_text()
    broken = json.loads((tmp_path / "broken.json").read_text(encoding="utf-8"))
    messages = [(tmp_path / f"rank-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    facts = [json.loads((folder / "facts.json").read_text(encoding="utf-8")) for folder in evidence_folders(tmp_path)]
    positions = sorted(place for each in facts for place in each["positions"])
    assert len(positions) == 16
    assert broken in positions
    for message in messages:
        assert f"by position in the round: {positions}; with tokens that are not finite: [{broken}]" in message


def evidence_folders(out: Path) -> list[Path]:
    """Return the folders of all processes."""
    return sorted((out / "run" / "non-finite").iterdir())
