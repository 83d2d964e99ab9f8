"""The loss curves that the engine gave once, and the environment that it gave them in.

    python -m tests.golden.loss_curves      # writes loss_curves.json anew: look at the difference before committing it

A change of these numbers is a change of what every user trains: it wants a reason in its commit.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.trd_engine.tiny_runs import WHOLE_ANSWERS, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.training.loop import distil

FILE = Path(__file__).with_suffix(".json")
NAMES = ("loss", "grad_norm", "heldout_forward_kl")
RUNS: dict[str, dict[str, Any]] = {
    "trd": {},
    "opd_reverse_kl_topk": {
        "mode": "opd",
        "loss": {"divergence": "reverse_kl", "support": "top_k", "teacher_top_k": 8},
    },
    "opsd_lora": {"mode": "opsd", "teacher": None, "loss": {}, "lora": {"rank": 8, "alpha": 16}},
}


def environment() -> dict[str, str]:
    """Return the versions and the processor, which decide the last bits."""
    return {
        "processor": _processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    """Return the processor's model and a digest of its features: kernels are chosen by both."""
    facts = dict.fromkeys(("vendor_id", "cpu family", "model", "flags"), "?")
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in facts:
            facts[key.strip()] = value.strip()
    digest = hashlib.sha256(facts.pop("flags").encode()).hexdigest()[:8]
    return " ".join([platform.machine(), *facts.values(), digest])


def curves(name: str, folder: Path) -> dict[str, list[float]]:
    """Return the metrics of one run, step by step."""
    distil(parse_config(spec(write_data(folder / "data"), **{**WHOLE_ANSWERS, **RUNS[name]})), folder / "out")
    return {metric_name: metric(folder / "out", metric_name) for metric_name in NAMES}


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    found = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = curves(name, Path(folder))
    FILE.write_text(json.dumps({"environment": environment(), "curves": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
