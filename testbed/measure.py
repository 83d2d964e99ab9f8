"""Measure the small models on the task, with transformers' own generation.

    python -m testbed.measure MODELS_DIR [--problems 250] [--samples 8] [--split heldout]

Owns the figures of the model cards. Samples at temperature 0.6, top-p 0.95, top-k 20; an
answer is right when the last box holds it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, Qwen3ForCausalLM

from testbed import task
from testbed.export import write_card
from testbed.tokenizer import (
    END_ID,
    PAD_ID,
    PROMPTS,
    TOKEN_IDS,
    build_tokenizer,
    encode,
    encode_prompt,
)
from trd_data.templates import fill

MAX_NEW_TOKENS = 320
"""Length of five long attempts; a longer completion never ends."""
_BATCH_SIZE = 256
SCORES_FILE = "scores.json"
PAIRS = {
    "tiny-teacher": ("tiny-student", "tiny-student-slips"),
    "tiny-teacher-half-native": ("tiny-student",),
    "tiny-teacher-native": ("tiny-student",),
    "tiny-teacher-loops": ("tiny-student-loops",),
}
"""Each teacher, and the students whose attempts it is measured on."""

Scores = dict[str, float]


def load_model(folder: Path) -> Qwen3ForCausalLM:
    """Load a model folder in fp32 for inference."""
    model: Qwen3ForCausalLM = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model


@torch.inference_mode()
def complete(model: Qwen3ForCausalLM, contents: Sequence[str], *, seed: int | None = None) -> list[str]:
    """Complete user messages; greedily without a seed, else sampled from that seed."""
    tokenizer = build_tokenizer()
    settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
    if seed is not None:
        settings |= {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    config = GenerationConfig.from_dict(settings)
    if seed is not None:
        torch.manual_seed(seed)
    # Similar lengths share a batch: less padding, and short ones stop early.
    order = sorted(range(len(contents)), key=lambda index: len(contents[index]))
    texts = [""] * len(contents)
    for start in range(0, len(order), _BATCH_SIZE):
        chosen = order[start : start + _BATCH_SIZE]
        prompts = [encode_prompt(contents[index]) for index in chosen]
        longest = max(map(len, prompts))
        input_ids_BT = torch.tensor([[PAD_ID] * (longest - len(prompt)) + prompt for prompt in prompts])
        output_BT = cast(Any, model).generate(
            input_ids=input_ids_BT,
            attention_mask=(input_ids_BT != PAD_ID).long(),
            generation_config=config,
        )
        completions_BT = output_BT[:, input_ids_BT.shape[1] :]
        decoded = tokenizer.batch_decode(completions_BT, skip_special_tokens=True)
        for index, text in zip(chosen, decoded, strict=True):
            texts[index] = text
    return texts


def draw_problems(num_problems: int, split: task.Split, seed: int = 0) -> list[str]:
    """Draw problems of a split, the same for every model."""
    rng = random.Random(f"measure/{split}/{seed}")
    return [task.draw_problem(rng, split).text for _ in range(num_problems)]


def correct(problem: str, completion: str) -> bool:
    """Return whether the last box has the correct answer."""
    return task.boxed_answer(completion) == task.answer(problem)


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def _mean_tokens(texts: Sequence[str]) -> float:
    return sum(len(encode(text)) for text in texts) / len(texts)


def solve_accuracy(model: Qwen3ForCausalLM, num_problems: int) -> float:
    """Measure the greedy accuracy on validation problems, for the training log."""
    model.train(False)
    problems = draw_problems(num_problems, "validation")
    texts = complete(model, [fill(PROMPTS["solve"], problem=p) for p in problems])
    return _share([correct(*pair) for pair in zip(problems, texts, strict=True)])


def solving_scores(
    model: Qwen3ForCausalLM, problems: list[str], num_samples: int, seed: int
) -> tuple[Scores, list[str]]:
    """Measure greedy accuracy, avg@k and pass@k; return the first sample of every problem, too."""
    contents = [fill(PROMPTS["solve"], problem=p) for p in problems]
    greedy = complete(model, contents)
    sampled = complete(model, contents * num_samples, seed=seed)
    hits = [correct(p, t) for p, t in zip(problems * num_samples, sampled, strict=True)]
    size = len(problems)
    scores = {
        "greedy": _share([correct(*pair) for pair in zip(problems, greedy, strict=True)]),
        f"avg@{num_samples}": _share(hits),
        f"pass@{num_samples}": _share([any(hits[index::size]) for index in range(size)]),
        "boxed": _share([task.boxed_answer(text) is not None for text in sampled]),
        "tokens": _mean_tokens(sampled),
        "values_only": _share([task.style_of(text) == task.REFERENCE_STYLE for text in sampled]),
    }
    return scores, sampled[:size]


def refining_scores(
    model: Qwen3ForCausalLM, problems: list[str], attempts: list[str], *, privileged: bool, seed: int
) -> Scores:
    """Measure what refining does to attempts: accuracies, transitions, and whether style is kept."""
    template = PROMPTS["privileged_refine" if privileged else "refine"]
    contents = [
        fill(template, problem=p, solution=task.reference(p), attempt=a)
        for p, a in zip(problems, attempts, strict=True)
    ]
    greedy, refined = complete(model, contents), complete(model, contents, seed=seed)
    before = [correct(*pair) for pair in zip(problems, attempts, strict=True)]
    after = [correct(*pair) for pair in zip(problems, refined, strict=True)]
    same_style = [task.style_of(a) == task.style_of(r) for a, r in zip(attempts, refined, strict=True)]
    return {
        "attempts": _share(before),
        "refined": _share(after),
        "refined_greedy": _share([correct(*pair) for pair in zip(problems, greedy, strict=True)]),
        "fail_to_pass": _share([a and not b for b, a in zip(before, after, strict=True)]),
        "pass_to_fail": _share([b and not a for b, a in zip(before, after, strict=True)]),
        "style_kept": _share(same_style),
        "attempt_tokens": _mean_tokens(attempts),
        "refined_tokens": _mean_tokens(refined),
    }


@torch.inference_mode()
def wait_probabilities(model: Qwen3ForCausalLM, problems: list[str], attempts: list[str]) -> Scores:
    """Measure the model's mean P(``wait``) where a line starts, along attempts given the problem alone: on a right
    prefix, on the first line start after an error, and on later ones."""
    places: dict[str, list[float]] = {"right_prefix": [], "first_after_error": [], "later": []}
    for problem, text in zip(problems, attempts, strict=True):
        style = task.style_of(text)
        if style is None or task.WAIT in text:
            continue
        lines = text.split(style)
        wrong = task.first_wrong_line(problem, lines)
        ids = encode_prompt(problem)
        starts = [len(ids)]
        for line in lines[:-1]:
            starts.append(starts[-1] + len(encode(line + style)))
        logits_TV = model(input_ids=torch.tensor([[*ids, *encode(text)]])).logits[0]
        wait_T = logits_TV.softmax(-1)[:, TOKEN_IDS[task.WAIT]]
        for index, position in enumerate(starts):
            where = "right_prefix" if wrong is None or index <= wrong else "later"
            where = "first_after_error" if wrong is not None and index == wrong + 1 else where
            places[where].append(float(wait_T[position - 1]))
    return {where: sum(values) / max(1, len(values)) for where, values in places.items()}


def measure(
    models_dir: Path, num_problems: int, num_samples: int, split: task.Split, seed: int
) -> dict[str, dict[str, Scores]]:
    """Measure all models in a folder; return the figures by model, then by what was measured, then by score."""
    problems = draw_problems(num_problems, split, seed)
    scores: dict[str, dict[str, Scores]] = {}
    attempts_by: dict[str, list[str]] = {}
    for name in dict.fromkeys(itertools.chain.from_iterable(PAIRS.values())):
        if not (models_dir / name / "config.json").exists():
            continue
        student = load_model(models_dir / name)
        solving, attempts_by[name] = solving_scores(student, problems, num_samples, seed)
        refining = refining_scores(student, problems, attempts_by[name], privileged=True, seed=seed)
        scores[name] = {"solving": solving, "privileged refining of its own attempts": refining}
    for name, students in PAIRS.items():
        if not (models_dir / name / "config.json").exists():
            continue
        teacher = load_model(models_dir / name)
        scores[name] = {"solving": solving_scores(teacher, problems, num_samples, seed)[0]}
        for student_name in students:
            if student_name in attempts_by:
                scores[name] |= {
                    f"refining attempts of {student_name}": refining_scores(
                        teacher, problems, attempts_by[student_name], privileged=False, seed=seed
                    ),
                    f"P(wait) at line starts of {student_name}": wait_probabilities(
                        teacher, problems, attempts_by[student_name]
                    ),
                }
    return scores


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write ``scores.json`` and the model cards."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models_dir", type=Path)
    parser.add_argument("--problems", type=int, default=250)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--split", choices=("validation", "heldout"), default="heldout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print-only", action="store_true", help="leave files as they are")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scores = measure(options.models_dir, options.problems, options.samples, options.split, options.seed)
    sys.stdout.write(json.dumps(scores, indent=2) + "\n")
    if options.print_only:
        return
    setting = {key: getattr(options, key) for key in ("problems", "samples", "split", "seed")}
    record = {"setting": setting, "scores": scores}
    (options.models_dir / SCORES_FILE).write_text(json.dumps(record, indent=2) + "\n")
    for name, of_model in scores.items():
        write_card(options.models_dir / name, of_model, setting)


if __name__ == "__main__":
    main()
