"""The tutorial, done as it says: each of its four ways trains a student that loads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.local_service import LocalService, local_service

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- run: (\w+) -->\n)? *```(sh|python)\n(.*?) *```", re.DOTALL)
NOT_RUN = ("make venv", "export TRD_URL")
"""How blocks begin that say how to install and start, which the test has done."""

BLOCKS = [(way, language, textwrap.dedent(code)) for way, language, code in BLOCK.findall(PAGE)]


def script(way: str) -> str:
    """Return all blocks of one way in one script: each builds on those before it."""
    return "\n".join(code for of, _, code in BLOCKS if of == way)


def test_every_block_is_run() -> None:
    assert [code for way, _, code in BLOCKS if not way and not code.startswith(NOT_RUN)] == []
    assert {way for way, _, _ in BLOCKS} == {"", "rows", "cli", "curl", "python", "openai", "use"}
    assert PAGE.count("```") == 2 * len(BLOCKS)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    with local_service(tmp_path_factory.mktemp("tutorial") / "data", settings={"OMP_NUM_THREADS": "1"}) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cli", "curl", "python", "openai"])
def test_a_way_leads_to_a_student(
    service: LocalService, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        **os.environ, "TRD_URL": service.url, "TRD_API_KEY": service.key, "PYTHONPATH": str(CHECKOUT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    bash = [str(shutil.which("bash")), "-euo", "pipefail", "-c"]
    python = [sys.executable, "-W", "error", "-c"]
    for program, of in ((bash, "rows"), (bash if way in ("cli", "curl") else python, way)):
        done = subprocess.run(
            [*program, script(of)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, f"{of}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "student" / "config.json").is_file()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(script("use"), names)  # our own page, in this process, which loads torch once for all ways
    assert names["model"].config.vocab_size >= len(names["tokenizer"])
