"""Distil with `trd_engine` as a library: own problems, an own task and a callback. Takes about a minute on a CPU.

python -m examples.library build/library
"""

import sys
from pathlib import Path
from typing import Any

from testbed.make_data import draw_rows
from trd_data.templates import EXACT
from trd_engine import Problem, RunConfig, Task, Verdict, distil

SPEC = {
    "mode": "trd",
    "student": "testbed/models/tiny-student",
    "teacher": "testbed/models/tiny-teacher",
    "lora": None,
    "sampling": {"max_prompt_tokens": 64, "max_new_tokens": 96, "engine": "transformers"},
    "refine": {"max_prompt_tokens": 192, "max_new_tokens": 96},
    "optim": {"learning_rate": 1e-3, "batch_size": 32},
    "evaluation": {"holdout": 0.2, "k": 2},
}


class LastLine(Task):
    """Accepts a completion whose last line contains the answer."""

    name, prompts = "last_line", EXACT

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        last = completion_text.strip().split(";")[-1]
        return Verdict(problem.answer in last, last)


def show_loss(event: dict[str, Any]) -> None:
    if event["type"] == "metrics" and "loss" in event["values"]:
        print(f"step {event['step']}: loss {event['values']['loss']:.3f}")


if __name__ == "__main__":
    config, problems = RunConfig.model_validate(SPEC), draw_rows("train", 192, seed=0)
    result = distil(config, Path(sys.argv[1]), problems=problems, task=LastLine(), on_event=show_loss)
    print(f"avg@2: {result.scores[0].avg_at_k:.1%} → {result.scores[-1].avg_at_k:.1%}; see {result.checkpoint}")
