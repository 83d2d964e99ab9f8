"""A model by its hub id is the folder that its files lie in; the hub here is its own cache, offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trd_engine.tiny_runs import MODELS, spec
from trd_engine.config import parse_config
from trd_engine.errors import ModelNotFoundError
from trd_engine.hub_models import local_folder, with_local_models

ROOT = Path(__file__).parents[2]
ASK = """
import sys
from trd_engine.config import parse_config
from trd_engine.hub_models import with_local_models
from tests.trd_engine.tiny_runs import spec
from pathlib import Path
config = with_local_models(parse_config(spec(Path("."), student=sys.argv[1])))
print(config.student, config.student_name, config.teacher_name)
"""


def test_a_hub_id_becomes_its_folder_and_stays_its_name(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--acme--tiny"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    shutil.copytree(MODELS / "tiny-student", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name, encoding="ascii")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("acme/tiny", f"acme/tiny@{snapshot.name}"):
        printed = subprocess.run(
            [sys.executable, "-c", ASK, name], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert printed.split() == [str(snapshot), name, "None"]


def test_a_folder_is_itself() -> None:
    config = parse_config(spec(Path(), student_name="own"))
    assert with_local_models(config) == config


@pytest.mark.parametrize("source", ["acme/not there", "no/such/folder/at/all"])
def test_what_is_neither_is_said(source: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"model {source!r}: no such folder, and no hub gave it"):
        local_folder(source)
