r"""Simple word problems in English, each with a worked solution that ends in ``\boxed{}``.

    python -m examples.word_problems --out train.jsonl --size 512 --seed 0 --heldout heldout.jsonl

For small instruct models: one or two steps of arithmetic with numbers up to a few hundred. Rows have `id`,
`problem`, `answer` and `solution`. A problem's split is a hash of its text: no held-out problem is in any
training file, whatever the seeds and sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout"]
_NUM_BUCKETS = 5
"""One problem in this number is held out."""
MAX_SIZE: dict[Split, int] = {"train": 20_000, "heldout": 5_000}

_NAMES = (
    "Ada", "Ben", "Chloe", "Dev", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam",
    "Mei", "Noor", "Omar", "Priya", "Quinn", "Rosa", "Sven", "Tara", "Uma", "Viktor", "Wanda", "Yusuf",
)  # fmt: skip
_THINGS = (
    "apples", "marbles", "stickers", "pencils", "shells", "stamps", "buttons", "walnuts", "postcards", "beads",
    "coins", "cookies",
)  # fmt: skip
_CONTAINERS = ("boxes", "bags", "baskets", "jars", "crates", "trays")
_GOODS = (("notebook", "notebooks"), ("ticket", "tickets"), ("mug", "mugs"), ("plant", "plants"), ("pizza", "pizzas"))


@dataclass(frozen=True)
class WordProblem:
    """A problem, its steps and their result."""

    text: str
    steps: tuple[str, ...]
    answer: int

    @property
    def solution(self) -> str:
        """Return the steps, one per line, and the boxed answer."""
        return "\n".join([*self.steps, f"The answer is \\boxed{{{self.answer}}}."])


def _gain(rng: random.Random) -> WordProblem:
    name, friend = rng.sample(_NAMES, 2)
    thing = rng.choice(_THINGS)
    had, given = rng.randint(5, 60), rng.randint(3, 40)
    total = had + given
    return WordProblem(
        f"{name} has {had} {thing}. {friend} gives {name} {given} more. How many {thing} does {name} have now?",
        (
            f"{name} starts with {had} {thing}.",
            f"With the {given} from {friend}, that makes {had} + {given} = {total}.",
        ),
        total,
    )


def _loss(rng: random.Random) -> WordProblem:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    lost = rng.randint(3, 40)
    had = lost + rng.randint(2, 50)
    left = had - lost
    return WordProblem(
        f"{name} had {had} {thing} and lost {lost} of them. How many {thing} are left?",
        (f"{lost} of the {had} {thing} are gone.", f"What is left is {had} - {lost} = {left}."),
        left,
    )


def _boxes(rng: random.Random) -> WordProblem:
    thing, container = rng.choice(_THINGS), rng.choice(_CONTAINERS)
    count, each = rng.randint(3, 12), rng.randint(3, 15)
    total = count * each
    return WordProblem(
        f"There are {count} {container} with {each} {thing} in each. How many {thing} are there in all?",
        (f"Each of the {count} {container} holds {each} {thing}.", f"Together they hold {count} * {each} = {total}."),
        total,
    )


def _sharing(rng: random.Random) -> WordProblem:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    friends, each = rng.randint(2, 9), rng.randint(2, 15)
    total = friends * each
    return WordProblem(
        f"{name} shares {total} {thing} equally among {friends} friends. How many {thing} does each friend get?",
        (f"The {total} {thing} are split into {friends} equal parts.", f"Each part is {total} / {friends} = {each}."),
        each,
    )


def _boxes_and_loose(rng: random.Random) -> WordProblem:
    name, thing, container = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_CONTAINERS)
    count, each, loose = rng.randint(2, 9), rng.randint(3, 12), rng.randint(2, 20)
    packed = count * each
    return WordProblem(
        f"{name} keeps {count} {container} of {each} {thing} each and has {loose} loose {thing} besides. "
        f"How many {thing} does {name} have altogether?",
        (f"In the {container} there are {count} * {each} = {packed} {thing}.",
         f"With the {loose} loose ones, that makes {packed} + {loose} = {packed + loose}."),
        packed + loose,
    )  # fmt: skip


def _gain_and_loss(rng: random.Random) -> WordProblem:
    name, friend = rng.sample(_NAMES, 2)
    thing = rng.choice(_THINGS)
    had, found = rng.randint(10, 50), rng.randint(3, 30)
    middle = had + found
    given = rng.randint(2, middle - 2)
    return WordProblem(
        f"{name} has {had} {thing}, finds {found} more, and then gives {given} to {friend}. "
        f"How many {thing} does {name} have left?",
        (f"After finding some, {name} has {had} + {found} = {middle} {thing}.",
         f"After giving some away, {name} has {middle} - {given} = {middle - given}."),
        middle - given,
    )  # fmt: skip


def _shopping(rng: random.Random) -> WordProblem:
    name, (good, goods) = rng.choice(_NAMES), rng.choice(_GOODS)
    price, count = rng.randint(2, 15), rng.randint(2, 9)
    total = price * count
    return WordProblem(
        f"One {good} costs {price} dollars. How many dollars does {name} pay for {count} {goods}?",
        (f"{name} pays {price} dollars, {count} times.", f"That is {count} * {price} = {total} dollars."),
        total,
    )


def _change(rng: random.Random) -> WordProblem:
    name, (_, goods) = rng.choice(_NAMES), rng.choice(_GOODS)
    price, count = rng.randint(2, 12), rng.randint(2, 6)
    cost = price * count
    paid = cost + rng.randint(1, 30)
    return WordProblem(
        f"{name} buys {count} {goods} at {price} dollars each and pays with {paid} dollars. "
        f"How many dollars of change does {name} get?",
        (f"The {goods} cost {count} * {price} = {cost} dollars.", f"The change is {paid} - {cost} = {paid - cost}."),
        paid - cost,
    )


def _walking(rng: random.Random) -> WordProblem:
    name = rng.choice(_NAMES)
    distance, days = rng.randint(2, 20), rng.randint(3, 20)
    total = distance * days
    return WordProblem(
        f"{name} walks {distance} kilometers every day. How many kilometers does {name} walk in {days} days?",
        (f"Every day adds {distance} kilometers.", f"In {days} days that is {days} * {distance} = {total} kilometers."),
        total,
    )


def _reading(rng: random.Random) -> WordProblem:
    name = rng.choice(_NAMES)
    pages, days, rest = rng.randint(5, 25), rng.randint(2, 9), rng.randint(4, 60)
    read = pages * days
    return WordProblem(
        f"A book has {read + rest} pages. {name} reads {pages} pages a day for {days} days. "
        "How many pages are still to be read?",
        (f"In {days} days {name} reads {days} * {pages} = {read} pages.",
         f"Still to be read are {read + rest} - {read} = {rest} pages."),
        rest,
    )  # fmt: skip


def _comparison(rng: random.Random) -> WordProblem:
    name, friend = rng.sample(_NAMES, 2)
    thing = rng.choice(_THINGS)
    fewer, difference = rng.randint(4, 40), rng.randint(2, 25)
    more = fewer + difference
    return WordProblem(
        f"{name} has {fewer} {thing}. {friend} has {difference} more than {name}. How many do they have together?",
        (
            f"{friend} has {fewer} + {difference} = {more} {thing}.",
            f"Together they have {fewer} + {more} = {fewer + more}.",
        ),
        fewer + more,
    )


def _multiple(rng: random.Random) -> WordProblem:
    name, friend = rng.sample(_NAMES, 2)
    times, age = rng.randint(2, 5), rng.randint(4, 16)
    older = times * age
    return WordProblem(
        f"{name} is {age} years old. {friend} is {times} times as old. How many years older is {friend} than {name}?",
        (
            f"{friend} is {times} * {age} = {older} years old.",
            f"The difference is {older} - {age} = {older - age} years.",
        ),
        older - age,
    )


def _bus(rng: random.Random) -> WordProblem:
    off, on = rng.randint(2, 20), rng.randint(2, 25)
    start = off + rng.randint(3, 40)
    middle = start - off
    return WordProblem(
        f"A bus carries {start} people. At a stop, {off} people get off and {on} get on. "
        "How many people are on the bus now?",
        (f"After {off} people get off, {start} - {off} = {middle} are left.",
         f"After {on} people get on, there are {middle} + {on} = {middle + on}."),
        middle + on,
    )  # fmt: skip


def _rows_of_chairs(rng: random.Random) -> WordProblem:
    rows, each = rng.randint(3, 12), rng.randint(4, 12)
    taken = rng.randint(2, rows * each - 2)
    total = rows * each
    return WordProblem(
        f"A hall has {rows} rows of {each} chairs. {taken} chairs are taken. How many chairs are free?",
        (f"The hall has {rows} * {each} = {total} chairs.", f"Free are {total} - {taken} = {total - taken}."),
        total - taken,
    )


TEMPLATES: tuple[Callable[[random.Random], WordProblem], ...] = (
    _gain, _loss, _boxes, _sharing, _boxes_and_loose, _gain_and_loss, _shopping, _change, _walking, _reading,
    _comparison, _multiple, _bus, _rows_of_chairs,
)  # fmt: skip


def split_of(text: str) -> Split:
    """Return the split of a problem, which depends only on its text."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % _NUM_BUCKETS
    return "heldout" if bucket == 0 else "train"


def draw_problems(split: Split, size: int, seed: int) -> list[WordProblem]:
    """Return `size` distinct problems of one split, alternating over the templates."""
    rng = random.Random(f"word problems/{split}/{seed}")
    drawn: dict[str, WordProblem] = {}
    for template in (TEMPLATES[place % len(TEMPLATES)] for place in range(size)):
        problem = template(rng)
        while split_of(problem.text) != split or problem.text in drawn:
            problem = template(rng)
        drawn[problem.text] = problem
    return list(drawn.values())


def write_problems(path: Path, split: Split, size: int, seed: int) -> None:
    """Write a JSONL file of problems."""
    rows = [
        {"id": f"{split}-{seed}-{place}", "problem": each.text, "answer": str(each.answer), "solution": each.solution}
        for place, each in enumerate(draw_problems(split, size, seed))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Write the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of training problems")
    parser.add_argument(
        "--size", type=_size_up_to(MAX_SIZE["train"]), default=512, help="problems in it (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heldout", type=Path, help="JSONL file of held-out problems")
    parser.add_argument(
        "--heldout-size",
        type=_size_up_to(MAX_SIZE["heldout"]),
        default=200,
        help="problems in it (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    write_problems(options.out, "train", options.size, options.seed)
    if options.heldout is not None:
        write_problems(options.heldout, "heldout", options.heldout_size, options.seed)


def _size_up_to(limit: int) -> Callable[[str], int]:
    """Limit the size: templates have hundreds to thousands of problems per split, and drawing must end."""

    def size(text: str) -> int:
        value = int(text)
        if not 1 <= value <= limit:
            raise argparse.ArgumentTypeError(f"must be between 1 and {limit}")
        return value

    return size


if __name__ == "__main__":
    main()
