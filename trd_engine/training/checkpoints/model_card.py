"""The README.md of a checkpoint's model folder, and its plot: where the weights come from, and how good they are."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any

from trd_engine.config import RunConfig
from trd_engine.training.checkpoints.state import TrainingState
from trd_engine.types import ScoreRow

PLOT_FILE = "training.png"
FEWEST_SCORES, FEWEST_LOSSES = 3, 10
"""With fewer of both there is no plot: the card's table shows the same."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that made the weights."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def training_plot(state: TrainingState) -> bytes | None:
    """Draw the accuracy before, during and after training, and the loss, as PNG; None if that would show nothing."""
    scores = [row for row in state.scores if row.dataset == state.scores[-1].dataset]
    if len(scores) < FEWEST_SCORES and len(state.losses) < FEWEST_LOSSES:
        return None
    from trd_data.plots import Curve, Panel, draw, png  # it takes most of a second

    panels = []
    if scores:
        values = [row.avg_at_k for row in scores]
        lows, highs = (
            [value if end is None else end for value, end in zip(values, ends, strict=True)]
            for ends in ([row.avg_low for row in scores], [row.avg_high for row in scores])
        )
        curve = Curve([row.step for row in scores], values, marker="o", ends=(lows, highs))
        panels.append(Panel("scores", f"Share of correct answers (avg@{scores[-1].k}), 95 % intervals", [curve]))
    if state.losses:
        steps = range(state.step - len(state.losses) + 1, state.step + 1)
        panels.append(Panel("loss", "Loss by step", [Curve(steps, state.losses)]))
    return png(draw(panels), dpi=100)


def model_card(config: RunConfig, state: TrainingState, *, num_steps: int, has_plot: bool) -> str:
    """Return the card as Markdown, with the metadata block that model hubs read."""
    student = config.student_name or config.student
    teacher = config.teacher_name or _teacher(config)
    loss, changed = config.loss, config.loss.token_weights.model_dump(exclude_defaults=True)
    schedule = "" if loss.reverse_after is None else f", reverse KL after {loss.reverse_after:g} of the steps"
    facts: list[tuple[str, Any]] = [
        ("Student", student),
        ("Teacher", teacher),
        ("Mode", config.mode.upper()),
        ("Loss", f"{loss.divergence}, support {loss.support}, teacher context {loss.teacher_context}{schedule}"),
        ("Token weights", ", ".join(f"{name} {value}" for name, value in changed.items()) or "none"),
        ("Weights", "full fine-tuning" if config.lora is None else f"LoRA, rank {config.lora.rank}"),
        ("Step", f"{state.step} of {num_steps}"),
        ("Seed", config.seed),
        ("Data fingerprint", f"`{state.data_fingerprint}`"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
    ]
    # A hub refuses a card whose base model is no name of a model, such as a folder.
    base_model = [f"base_model: {student}"] if HUB_NAME.fullmatch(student) else []
    plot = ["", f"![Accuracy and loss by step]({PLOT_FILE})"] if has_plot else []
    lines = [
        "---",
        *base_model,
        "library_name: transformers",
        "tags: [distillation, " + config.mode + "]",
        "---",
        "",
        f"# {student.rstrip('/').rsplit('/', 1)[-1]}, distilled ({config.mode.upper()})",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts),
        "",
        *_score_table(state.scores),
        *plot,
        "",
        *_usage(config, student),
    ]
    return "\n".join(lines) + "\n"


def _teacher(config: RunConfig) -> str:
    if config.served_teacher is not None:
        return f"{config.served_teacher.model}, served by endpoint {config.served_teacher.endpoint}"
    if config.teacher is not None:
        return config.teacher_folder
    own = {
        "frozen": "the student's own step-0 weights",
        "ema": "a moving average of the student's own weights",
        "periodic": "the student's own weights of a little earlier",
    }
    return f"{own[config.teacher_update.kind]}, shown the reference solution"


def _score_table(scores: Sequence[ScoreRow]) -> list[str]:
    if not scores:
        return ["Not evaluated."]
    rows = [
        f"| {s.step} | {s.dataset} ({s.num_problems}) | {s.k} | {_interval(s.avg_at_k, s.avg_low, s.avg_high)} | "
        f"{_interval(s.pass_at_k, s.pass_low, s.pass_high)} |"
        for s in scores
    ]
    return [
        "Step 0 is the student before training; 95 % intervals in brackets.",
        "",
        "| step | problems | k | avg@k | pass@k |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _interval(share: float, low: float | None, high: float | None) -> str:
    return f"{share:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def _usage(config: RunConfig, student: str) -> list[str]:
    """Return code that loads the folder of this file; with LoRA a checkpoint has an adapter and perhaps a merged
    model."""
    whole = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        "```",
        "",
        "`vllm serve FOLDER` serves it.",
    ]
    adapter = [
        "If this folder has `adapter_config.json` it is a LoRA adapter:",
        "",
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        "",
        'model = AutoPeftModelForCausalLM.from_pretrained("FOLDER", dtype="auto")',
        "```",
        "",
        f"`vllm serve {student} --enable-lora --max-lora-rank {config.lora.rank if config.lora else 0} "
        "--lora-modules student=FOLDER` serves it.",
        "",
        "Otherwise it is a whole model:",
        "",
    ]
    return ["## Use it", "", "FOLDER is the folder of this file.", "", *(adapter if config.lora else []), *whole]
