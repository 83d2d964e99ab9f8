"""The architecture of the small models, their Hugging Face folders and their model cards."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from testbed.recipes import Recipe, record
from testbed.tokenizer import END_ID, MAX_LENGTH, PAD_ID, PADDED_VOCABULARY, PROMPTS, build_tokenizer
from trd_data.templates import MODEL_PROMPTS_FILE

TRAINING_FILE = "training.json"
"""File with the settings that the weights were trained with, for the model card."""


def new_model() -> Qwen3ForCausalLM:
    """Make a model of 0.43M random parameters, from torch's global random generator."""
    config = Qwen3Config(
        vocab_size=PADDED_VOCABULARY,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        # Larger than the default of 0.02, which is meant for widths of thousands.
        initializer_range=0.06,
        attention_bias=False,
        use_sliding_window=False,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=END_ID,
    )
    # transformers leaves this constructor untyped.
    model = cast(Callable[[Qwen3Config], Qwen3ForCausalLM], Qwen3ForCausalLM)(config)
    model.generation_config = GenerationConfig.from_dict({"eos_token_id": END_ID, "pad_token_id": PAD_ID})
    return model


def export_model(model: Qwen3ForCausalLM, recipe: Recipe, seed: int, folder: Path) -> None:
    """Write weights, tokenizer, chat and prompt templates, and the training's facts."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = model
    if recipe.half_precision:
        stored = copy.deepcopy(model)
        stored.bfloat16()
    stored.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / MODEL_PROMPTS_FILE).write_text(json.dumps(PROMPTS, indent=2) + "\n")
    facts = {
        "recipe": record(recipe),
        "seed": seed,
        "num_parameters": model.num_parameters(),
    }
    (folder / TRAINING_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def write_card(folder: Path, scores: dict[str, dict[str, float]], setting: dict[str, object]) -> None:
    """Write the model card: where the weights come from, and what was measured."""
    facts = json.loads((folder / TRAINING_FILE).read_text())
    recipe = facts["recipe"]
    origin = recipe["starts_from"] or "random weights"
    precision = "bf16" if recipe.get("half_precision") else "fp32"
    rows = [
        f"| {what} | {score} | {value:.3f} |" for what, of_what in scores.items() for score, value in of_what.items()
    ]
    card = f"""# {folder.name}

{recipe["summary"]}

A model of {facts["num_parameters"]:,} parameters (Qwen3 architecture, {precision}, one token a
character) for one task: two digits and five operations from left to right, modulo 100, where
`a#d` is `2a + d`. It knows nothing else.

- Started from {origin} and trained by `python -m testbed.train_models {recipe["name"]}
  --seed {facts["seed"]} --steps {recipe["steps"]}`, about {recipe["tokens_per_step"]} tokens a step, AdamW,
  peak learning rate {recipe["learning_rate"]:g}. The log is `../logs/{recipe["name"]}.jsonl`.
- Data: generated while training, from the train split only (a hash of the problem's text).
  Proportions: {_in_words(recipe["mixture"])}.
  {_curriculum_in_words(recipe)}
- Errors it was taught: {_in_words(recipe["errors"])}.
{_specials_in_words(recipe)}- `trd_prompts.json` holds the user messages it was trained on.

## Scores
{setting["problems"]} problems of the {setting["split"]} split, {setting["samples"]} samples each,
temperature 0.6, top-p 0.95, top-k 20, seed {setting["seed"]}.

| what | score | value |
|---|---|---|
{chr(10).join(rows)}
"""
    (folder / "README.md").write_text(card)


def _curriculum_in_words(recipe: dict[str, Any]) -> str:
    if not recipe["curriculum_share"]:
        return "Problems of full size from the start."
    return (
        f"During the first {recipe['curriculum_share']:.0%} of the steps problems grow to full size, and the "
        f"proportions change from {_in_words(recipe['early_mixture'])}."
    )


def _specials_in_words(recipe: dict[str, Any]) -> str:
    lines = ""
    if "native_share" in recipe:
        lines += f"- Share of its own solutions that are values alone between `|`: {recipe['native_share']:g}.\n"
    if "foreign_max_restarts" in recipe:
        rates = ", ".join(f"{rate:g}" for rate in recipe["foreign_wait_rates"])
        lines += (
            f"- Attempts it was shown start again at rates of {rates}, up to {recipe['foreign_max_restarts']} times.\n"
        )
    return lines


def _in_words(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in numbers.items())
