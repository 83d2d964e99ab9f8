"""Train the small models from random weights: fixed steps and seeds, exact resumption.

    python -m testbed.train_models tiny-teacher|tiny-student|tiny-student-slips|all --out DIR

Owns the loop, its checkpoints and its log. An interrupted run continues from its last
checkpoint and ends with the same weights, bit for bit, on the same machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from testbed.examples import Example, draw_batch
from testbed.export import export_model, new_model
from testbed.measure import solve_accuracy
from testbed.recipes import RECIPES, Recipe
from testbed.tokenizer import PAD_ID

LOG_EVERY = 20
EVALUATE_EVERY = 500
MAX_MICRO_BATCH_TOKENS = 1000
"""Padded tokens in one forward pass; examples are sorted by length, so little is padding."""
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One recipe with one seed and its folders."""

    recipe: Recipe
    seed: int
    out: Path
    """Where model folders and ``logs/`` go."""
    work: Path
    """Where the resumable checkpoint lives until the run is over."""
    checkpoint_every: int = 500
    evaluation_problems: int = 64

    @property
    def checkpoint_file(self) -> Path:
        """The only checkpoint kept: replaced atomically."""
        return self.work / f"{self.recipe.name}-seed{self.seed}.pt"

    @property
    def log_file(self) -> Path:
        """One JSON object every ``LOG_EVERY`` steps."""
        return self.out / "logs" / f"{self.recipe.name}.jsonl"


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate: linear warm-up, then a cosine to one hundredth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def micro_batches(examples: list[Example]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sort examples by length into right-padded (input_ids_BT, labels_BT); context is not labelled."""
    groups: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda example: len(example.token_ids)):
        group = groups[-1]
        if group and (len(group) + 1) * len(example.token_ids) > MAX_MICRO_BATCH_TOKENS:
            groups.append([])
        groups[-1].append(example)
    return [_pad(group) for group in groups]


def _pad(group: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(example.token_ids) for example in group)
    input_ids_BT = torch.full((len(group), length), PAD_ID)
    labels_BT = torch.full((len(group), length), _IGNORED)
    for row, example in enumerate(group):
        ids = torch.tensor(example.token_ids)
        input_ids_BT[row, : len(ids)] = ids
        labels_BT[row, example.num_context : len(ids)] = ids[example.num_context :]
    return input_ids_BT, labels_BT


def accumulate_gradients(model: Qwen3ForCausalLM, examples: list[Example]) -> float:
    """Run backward through all micro-batches; return the mean loss per trained token, in nats."""
    batches = micro_batches(examples)
    # One divisor for the whole step: a mean of means would weigh short completions more.
    num_trained = sum(int((labels_BT[:, 1:] != _IGNORED).sum()) for _, labels_BT in batches)
    total = 0.0
    for input_ids_BT, labels_BT in batches:
        # Right padding under a causal mask needs no attention mask: nothing trained sees it.
        logits_BTV = model(input_ids=input_ids_BT, use_cache=False).logits
        loss = functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1),
            labels_BT[:, 1:].flatten(),
            ignore_index=_IGNORED,
            reduction="sum",
        )
        torch.autograd.backward(loss / num_trained)
        total += float(loss.detach())
    return total / num_trained


def save_checkpoint(run: TrainingRun, model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW, step: int) -> None:
    """Write everything that is needed to resume at ``step``; data needs no state, see examples.py."""
    run.work.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "recipe": dataclasses.asdict(run.recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
    }
    partial = run.checkpoint_file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(run.checkpoint_file)


def load_checkpoint(run: TrainingRun, model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW) -> int:
    """Restore the last checkpoint if there is one; return the next step."""
    if not run.checkpoint_file.exists():
        return 0
    state: dict[str, Any] = torch.load(run.checkpoint_file, weights_only=True)
    if state["recipe"] != dataclasses.asdict(run.recipe):
        raise ValueError(
            f"{run.checkpoint_file} belongs to another recipe or number of steps; remove it to start again"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    return int(state["step"])


def train_step(
    run: TrainingRun, model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW, step: int
) -> tuple[float, float]:
    """Take one update; return loss and gradient norm. Raises before an update that is not finite."""
    recipe = run.recipe
    loss = accumulate_gradients(model, draw_batch(recipe, run.seed, step))
    gradient_norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    if not math.isfinite(loss) or not math.isfinite(gradient_norm):
        raise FloatingPointError(f"step {step}: loss {loss}, gradient norm {gradient_norm}")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, gradient_norm


def train(run: TrainingRun, stop_before: int | None = None) -> Qwen3ForCausalLM:
    """Train to the recipe's last step, or checkpoint and return at ``stop_before``."""
    recipe = run.recipe
    torch.manual_seed(run.seed)
    if recipe.starts_from is None:
        model = new_model()
    else:
        folder = run.out / recipe.starts_from
        if not (folder / "config.json").exists():
            raise ValueError(f"{recipe.name} starts from {folder}: train that model first")
        model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    first = load_checkpoint(run, model, optimizer)
    run.log_file.parent.mkdir(parents=True, exist_ok=True)
    rows = run.log_file.read_text().splitlines() if run.log_file.exists() else []
    kept = [row for row in rows if json.loads(row)["step"] < first]
    run.log_file.write_text("".join(row + "\n" for row in kept))
    started_at = time.monotonic()
    model.train()
    for step in range(first, recipe.steps):
        if step == stop_before or (step > first and step % run.checkpoint_every == 0):
            save_checkpoint(run, model, optimizer, step)
        if step == stop_before:
            return model
        loss, gradient_norm = train_step(run, model, optimizer, step)
        done = step + 1
        if done % LOG_EVERY == 0 or done == recipe.steps:
            row = {"step": step, "loss": loss, "gradient_norm": gradient_norm}
            row |= {"learning_rate": learning_rate(recipe, step)}
            row |= {"seconds": time.monotonic() - started_at}
            if done % EVALUATE_EVERY == 0 or done == recipe.steps:
                row["solve_accuracy"] = solve_accuracy(model, run.evaluation_problems)
                model.train()
            rounded = {key: float(f"{value:.5g}") for key, value in row.items()}
            with run.log_file.open("a") as log:
                log.write(json.dumps(rounded | {"step": int(row["step"])}) + "\n")
            sys.stdout.write(f"{run.recipe.name} {json.dumps(rounded)}\n")
            sys.stdout.flush()
    save_checkpoint(run, model, optimizer, recipe.steps)
    return model


def main(arguments: list[str] | None = None) -> None:
    """Train and export the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", choices=[*RECIPES, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model folders")
    parser.add_argument("--work", type=Path, help="checkpoints; default OUT/.work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the recipe's number of steps")
    parser.add_argument("--smoke", action="store_true", help="six tiny steps, to try the way")
    options = parser.parse_args(arguments)
    # The models are too small for a second thread: it costs more time than it saves.
    torch.set_num_threads(1)
    work = options.work or options.out / ".work"
    for name in RECIPES if options.model == "all" else [options.model]:
        steps = options.steps or (6 if options.smoke else RECIPES[name].steps)
        recipe = dataclasses.replace(RECIPES[name], steps=steps)
        recipe = dataclasses.replace(recipe, tokens_per_step=400, warmup_steps=2) if options.smoke else recipe
        run = TrainingRun(recipe, options.seed, options.out, work)
        export_model(train(run), recipe, options.seed, options.out / name)
    if options.model == "all":
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
