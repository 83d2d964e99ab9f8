"""The candidates: `reasoning-gym` generators at easy settings, their prompts and their reference solutions.

`reasoning-gym` gives answers without steps; the reference solutions are made here from an entry's metadata, one line
per step, so that a student has steps to learn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import reasoning_gym
from reasoning_gym.arithmetic.leg_counting import ANIMALS

from trd_data.plain_json import plain_json
from trd_data.templates import fill

Entry = dict[str, Any]
"""Keys: question, answer, metadata."""
Split = Literal["heldout", "validation", "search", "warm_up", "train", "teacher"]
SIZES: dict[Split, int] = {
    "heldout": 200,
    "validation": 64,
    "search": 32,
    "warm_up": 64,
    "train": 128,
    "teacher": 384,
}
"""Problems per split, cut in this order from one stream of distinct texts, so that splits do not overlap. A new split
is added at the end: rows refer to problems by position."""
ALL_FORMS = "warm_up_all_forms"
"""The file of the warm-up problems in every form of `FORMS`."""
TEACHER_ALL_FORMS = "teacher_all_forms"
"""The file of the served teacher's problems in every form of `TEACHER_FORMS`."""
STREAM = 4000
"""Maximum number of generated entries to find enough distinct ones."""

PROMPTS = {
    "solve": "{problem}",
    "privileged": "{problem}\n\nThe right solution is:\n{solution}\n\nNow write the solution yourself.",
    "refine": "{problem}",
    "privileged_refine": (
        "{problem}\n\nA first attempt:\n{attempt}\n\nThe right solution is:\n{solution}\n\n"
        "Now write the attempt again, with its mistakes put right."
    ),
}
"""The spec's templates. `refine` is only sent to the endpoint that returns the reference solutions."""

FORMS = ("solve", "privileged", "privileged_refine")
"""Prompt forms that the grid uses: for the student, for a scoring teacher and for a refining teacher."""

TEACHER_PROMPTS = PROMPTS | {
    "refine": "{problem}\n\nA first attempt:\n{attempt}\n\nNow write the attempt again, with its mistakes put right."
}
"""The templates if a served model refines without y*; they equal those of its training."""

TEACHER_FORMS = ("solve", "refine")
"""Forms that the served teacher is trained on: solving, which its score measures, and refining."""


@dataclass(frozen=True)
class Candidate:
    """A generator with its settings."""

    name: str
    generator: str
    parameters: dict[str, Any]
    solve: Callable[[Entry], str]
    """Return the reference solution of an entry, with the answer in tags."""


def answered(way: str, answer: object) -> str:
    """Return a solution: the steps, if there are any, then the answer."""
    return f"{way}\n<answer>{answer}</answer>" if way else f"<answer>{answer}</answer>"


def _chain_sum(entry: Entry) -> str:
    first, *rest = re.findall(r"[+-]|\d+", entry["metadata"]["expression"])
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        following = total + int(term) * (1 if sign == "+" else -1)
        lines.append(f"{total} {sign} {term} = {following}")
        total = following
    return answered("\n".join(lines), total)


def _spell_backward(entry: Entry) -> str:
    letters = entry["metadata"]["word"]
    return answered(f"{' '.join(letters)}\n{' '.join(reversed(letters))}", entry["answer"])


def _leg_counting(entry: Entry) -> str:
    counts = [(name, number, ANIMALS[name]) for name, number in entry["metadata"]["animals"].items()]
    lines = [f"{number} {name}: {number} * {legs} = {number * legs}" for name, number, legs in counts]
    legs = [str(number * legs) for _, number, legs in counts]
    return answered("\n".join([*lines, f"{' + '.join(legs)} = {entry['answer']}"]), entry["answer"])


def _letter_counting(entry: Entry) -> str:
    letter = entry["metadata"]["target_letter"]
    counts = [(word, word.lower().count(letter)) for word in entry["metadata"]["span"]]
    lines = [f"{word}: {count}" for word, count in counts]
    total = " + ".join(str(count) for _, count in counts)
    return answered("\n".join([*lines, f"{total} = {entry['answer']}"]), entry["answer"])


def _sums(num_terms: int, num_digits: int) -> dict[str, int]:
    terms = {"min_terms": num_terms, "max_terms": num_terms}
    return terms | {"min_digits": num_digits, "max_digits": num_digits}


CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate("chain_sum-3x1", "chain_sum", _sums(3, 1), _chain_sum),
        Candidate("chain_sum-4x1", "chain_sum", _sums(4, 1), _chain_sum),
        Candidate("chain_sum-2x2", "chain_sum", _sums(2, 2), _chain_sum),
        Candidate("spell_backward-3-4", "spell_backward", {"min_word_len": 3, "max_word_len": 4}, _spell_backward),
        Candidate(
            "word_sequence_reversal-3-4",
            "word_sequence_reversal",
            {"min_words": 3, "max_words": 4},
            lambda entry: answered("", entry["answer"]),
        ),
        Candidate(
            "leg_counting-2",
            "leg_counting",
            {"min_animals": 2, "max_animals": 2, "min_instances": 1, "max_instances": 4},
            _leg_counting,
        ),
        Candidate("letter_counting-2-3", "letter_counting", {"min_words": 2, "max_words": 3}, _letter_counting),
    )
}


def draw(candidate: Candidate) -> dict[Split, list[Entry]]:
    """Return the rows of every split, as the engine reads them; deterministic."""
    dataset = reasoning_gym.create_dataset(candidate.generator, size=STREAM, seed=0, **candidate.parameters)
    rows: dict[str, Entry] = {}
    for index in range(STREAM):
        entry = dataset[index]
        if entry["question"] not in rows:
            rows[entry["question"]] = {
                "id": f"{candidate.name}-{index}",
                **plain_json({name: entry[name] for name in ("question", "answer", "metadata")}),
                "solution": candidate.solve(entry),
            }
        if len(rows) == sum(SIZES.values()):
            break
    assert len(rows) == sum(SIZES.values()), f"{candidate.name} has only {len(rows)} different problems"
    left = iter(rows.values())
    return {split: [next(left) for _ in range(size)] for split, size in SIZES.items()}


def in_all_forms(rows: list[Entry], forms: Sequence[str], prompts: Mapping[str, str]) -> list[Entry]:
    """Return each row in each of `forms` (names of templates in `prompts`), always with y* as the answer.

    A model of this size does not follow a prompt that contains y* or an attempt unless it was trained on it: given y*,
    it writes the answer without steps, whatever the wording, and so does a student that learns from it.
    """
    asked: list[Entry] = []
    for number, row in enumerate(rows):
        # Every other attempt is correct; the others have the next problem's answer.
        other = rows[(number + number % 2) % len(rows)]["answer"]
        attempt = re.sub(rf"(?<![\w-]){re.escape(row['answer'])}(?!\w)", lambda _, text=other: text, row["solution"])
        for form in forms:
            question = fill(prompts[form], problem=row["question"], solution=row["solution"], attempt=attempt)
            asked.append({**row, "id": f"{row['id']}-{form}", "question": question})
    return asked


def write_splits(candidate: Candidate, folder: Path) -> None:
    """Write one JSONL file per split; training splits are also written in all their forms."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = draw(candidate)
    asked = {
        ALL_FORMS: in_all_forms(splits["warm_up"], FORMS, PROMPTS),
        TEACHER_ALL_FORMS: in_all_forms(splits["teacher"], TEACHER_FORMS, TEACHER_PROMPTS),
    }
    for name, rows in {**splits, **asked}.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
