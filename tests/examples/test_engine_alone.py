"""`docs/engine.md`, done as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from contract.loss_spec import PRESET_LOSSES
from trd_engine.config import LossConfig, load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def test_the_losses_are_called_as_the_page_says() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet, names)  # our own page
    assert names["head_VH"].grad.isfinite().all()  # type: ignore[attr-defined]


def test_the_variants_of_the_page_are_the_presets() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| [a-z, ]+ \| `(\{.*?\})`", PAGE, re.MULTILINE))
    assert set(rows) == {str(preset) for preset in PRESET_LOSSES}
    for preset, wanted in PRESET_LOSSES.items():
        found = LossConfig.model_validate_json(rows[str(preset)]).model_dump()
        # In mode trd the refine context is the default of the spec, not of its block.
        assert {**found, "teacher_context": wanted["teacher_context"]} == {**found, **wanted}, preset


@pytest.mark.slow
def test_the_commands_of_the_page_train_a_better_student(tmp_path: Path) -> None:
    (tmp_path / "testbed").symlink_to(ROOT / "testbed")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = [line.removeprefix(".venv/bin/python ") for line in PAGE.splitlines() if line.startswith(".venv")]
    assert len(commands) == 4
    printed = []
    for command in commands[:3]:  # the fourth waits for somebody to type
        done = subprocess.run(
            [sys.executable, *command.split()],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=550,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(done.stdout)
    before, after = (float(share) for share in re.findall(r"avg@4 ([\d.]+)%", printed[1]))
    (again,) = (float(share) for share in re.findall(r"avg@8 ([\d.]+)%", printed[2]))
    assert min(after, again) > before
    assert load_config(ROOT / "examples" / "engine.json").mode == "trd"
    folder = commands[3].split()[-1]
    assert (tmp_path / folder / "config.json").is_file()
