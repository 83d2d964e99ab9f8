"""The examples, run as a user runs them: their own processes, real HTTP, real training."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REAL_MODEL = ROOT / "models" / "smollm2-135m-instruct"

pytestmark = pytest.mark.slow


def run_example(module: str, *arguments: str, seconds: int) -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(900)
def test_the_demo_makes_a_better_student(tmp_path: Path) -> None:
    """avg@4 on held-out problems rises by at least 20 points, and the checkpoint answers with both libraries."""
    output = run_example("examples.demo", "--out", str(tmp_path), seconds=850)
    before, after = re.search(r"avg@4\s+([\d.]+)%\s+([\d.]+)%", output).groups()  # type: ignore[union-attr]
    assert float(after) >= float(before) + 20
    refined, rollouts = (re.search(rf"accuracy of {y}\s+([\d.]+)%", output)[1] for y in ("y_r", "y_o"))  # type: ignore[index]
    assert float(refined) > float(rollouts)
    assert output.count("(right)") + output.count("(wrong") == 6
    assert "wall time, training" in output


@pytest.mark.timeout(600)
def test_the_openai_client_distils(tmp_path: Path) -> None:
    """The unmodified package: a bad row named, a job to its end, every checkpoint and the model's files."""
    output = run_example("examples.openai_client", "--out", str(tmp_path / "out"), seconds=550)
    assert "dataset_invalid" in output
    assert "row 257: answer: this field is required" in output
    assert re.findall(r"^checkpoint of step (\d+): loss [\d.]+, ft:tiny-student:", output, re.MULTILINE) == [
        "8",
        "6",
        "3",
    ]
    assert re.search(r"^ft:tiny-student:admin:example:job_\w+, trained on [1-9][\d,]+ tokens", output, re.MULTILINE)
    assert re.search(r"[1-9][\d,]* bytes  /jobs/job_\w+/checkpoints/8/files/model/model.safetensors", output)


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason="models/smollm2-135m-instruct is missing: make models")
def test_a_real_model_is_distilled_on_itself(tmp_path: Path) -> None:
    """The example itself fails unless losses are finite and the held-out forward KL falls."""
    small = ["--steps", "2", "--batch-size", "2", "--max-new-tokens", "32"]
    output = run_example("examples.real_model", "--out", str(tmp_path), *small, seconds=1150)
    assert "trd answers:" in output
    assert "opsd answers:" in output
