"""Distil with `trd_engine` as a library: own problems, an own task and a callback. Takes about a minute on a CPU.

python -m examples.library --out build/library
"""

import argparse
from pathlib import Path
from typing import Any

from testbed.make_data import draw_rows
from trd_engine import Problem, PromptTemplates, RunConfig, Task, Verdict, distil

MODELS = Path(__file__).parents[1] / "testbed" / "models"


class LastLine(Task):
    """Accepts a completion whose last line contains the answer."""

    name = "last_line"
    prompts = PromptTemplates("{problem}", "{problem}", "{problem} {attempt}", "{problem} {attempt}", "[cut]")

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        last = completion_text.strip().split(";")[-1]
        return Verdict(problem.answer in last, last)


def show(event: dict[str, Any]) -> None:
    if event["type"] == "metrics" and "loss" in event["values"]:
        print(f"step {event['step']}: loss {event['values']['loss']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    config = RunConfig.model_validate(
        {
            "mode": "trd",
            "student": str(MODELS / "tiny-student"),
            "teacher": str(MODELS / "tiny-teacher"),
            "lora": None,
            "sampling": {"max_prompt_tokens": 64, "max_new_tokens": 96, "engine": "transformers"},
            "refine": {"max_prompt_tokens": 192, "max_new_tokens": 96},
            "optim": {"learning_rate": 1e-3, "batch_size": 32},
            "evaluation": {"holdout": 0.2, "k": 2},
        }
    )
    rows = draw_rows("train", 192, seed=0)
    result = distil(config, parser.parse_args().out, problems=rows, task=LastLine(), on_event=show)
    print(f"avg@2: {result.scores[0].avg_at_k:.1%} → {result.scores[-1].avg_at_k:.1%}; see {result.checkpoint}")


if __name__ == "__main__":
    main()
