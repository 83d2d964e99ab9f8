"""``trd trajectories``: rollouts and their refinements. ``trd samples``: answers to the same problems over the run."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher
from itertools import groupby
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import Client
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import JsonFlag, answers, moment, plain, print_json, say, table
from contract.views.trajectories import Outcome, TrajectoryView

MAX_PROMPT_CHARACTERS = 600

_RIGHT = {True: ("right", "green"), False: ("wrong", "red"), None: ("not judged", "dim")}


def trajectories(
    job: JobArgument,
    trajectory: Annotated[
        str | None, typer.Argument(metavar="[ROUND:POSITION]", help="Only this one.", show_default=False)
    ] = None,
    *,
    outcome: Annotated[list[Outcome] | None, typer.Option(help="Only these; may be repeated.")] = None,
    round: Annotated[int | None, typer.Option(min=1, help="Only this round, from 1.")] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Only what this step trained on first.")] = None,
    text: Annotated[str | None, typer.Option(help="Only with this text in the prompt, in y_o or in y_r.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number to show.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Show rollouts y_o and refined trajectories y_r side by side: removed words are red, new ones are green."""
    with Client() as trd:
        job_id = job_id_of(trd, job)
        if trajectory is not None:
            found: list[TrajectoryView] = [trd.trajectories.get(job_id, trajectory)]
        else:
            number = round - 1 if round is not None else None
            wanted = trd.trajectories.list(job_id, outcome or (), num_wanted=limit, round=number, step=step, text=text)
            found = list(wanted)
        counts = trd.trajectories.outcomes(job_id)
        lacking = "no such trajectories" if counts else _why_none(trd, job_id)
    if as_json:
        lists = {"object": "list", "data": [plain(row) for row in found], "outcomes": [plain(row) for row in counts]}
        print_json(lists)
        return
    if not found:
        say(lacking)
    console = answers()
    for one in found:
        _show(console, one)
    if counts:
        by_outcome: Counter[str] = Counter()
        for count in counts:
            by_outcome[count.outcome] += count.num_trajectories
        say(
            f"{by_outcome.total()} in all: "
            + ", ".join(f"{number} {name}" for name, number in by_outcome.most_common())
        )


def _why_none(trd: Client, job_id: str) -> str:
    removed = trd.jobs.get(job_id).removed_before.get("trajectories")
    if removed is None:
        return "no trajectories yet: the first arrive at the end of the first round"
    return f"no trajectories: those from before {moment(removed)} were removed by the service's retention policy"


def _show(console: Console, one: TrajectoryView) -> None:
    prompt = one.prompt
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        prompt = prompt[:MAX_PROMPT_CHARACTERS] + f" … ({len(one.prompt)} characters)"
    console.print(Text(f"{one.id}  {one.outcome}", style="bold"))
    console.print(Text(prompt.strip(), style="cyan"))
    console.print(Text(f"answer: {one.answer}", style="dim"))
    sides = Table(box=box.SIMPLE, expand=True, show_edge=False)
    rollout = _heading("y_o, the rollout", one.rollout_correct, one.rollout_tokens)
    if one.refined is None:
        sides.add_column(rollout, overflow="fold")
        sides.add_row(Text(one.rollout))
    else:
        left, right = side_by_side(one.rollout, one.refined)
        sides.add_column(rollout, ratio=1, overflow="fold")
        sides.add_column(_heading("y_r, refined", one.refined_correct, one.refined_tokens), ratio=1, overflow="fold")
        sides.add_row(left, right)
    console.print(sides)
    console.print()


def _heading(title: str, is_right: bool | None, num_tokens: int | None) -> Text:
    word, style = _RIGHT[is_right]
    return Text(f"{title}: ").append(word, style=style).append(f", {num_tokens} tokens", style="dim")


_WORDS = re.compile(r"\w+|\s+|.", re.DOTALL)


def side_by_side(left: str, right: str) -> tuple[Text, Text]:
    """Return both texts; words that only `left` has are red, words that only `right` has are green."""
    left_words, right_words = _WORDS.findall(left), _WORDS.findall(right)
    left_text, right_text = Text(), Text()
    for tag, i, j, k, m in SequenceMatcher(None, left_words, right_words).get_opcodes():
        is_same = tag == "equal"
        left_text.append("".join(left_words[i:j]), style="default" if is_same else "red")
        right_text.append("".join(right_words[k:m]), style="default" if is_same else "green")
    return left_text, right_text


def samples(
    job: JobArgument,
    step: Annotated[int | None, typer.Option(min=0, help="Only the evaluation at this step.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the student's answers to a few fixed problems at each evaluation."""
    with Client() as trd:
        found = list(trd.probe_samples.list(job_id_of(trd, job), step=step))
    if as_json:
        print_json(found)
        return
    if not found:
        say("no samples yet: they come with the evaluations, unless evaluation.num_probe_samples is 0")
    console = answers()
    by_problem = sorted(found, key=lambda sample: (sample.position, sample.step))
    for _, group in groupby(by_problem, key=lambda sample: sample.position):
        of_problem = list(group)
        console.print(Text(of_problem[0].prompt.strip(), style="cyan"))
        rows = table("#step", "", "completion")
        for sample in of_problem:
            verdict = Text("right", style="green") if sample.correct else Text("wrong", style="red")
            rows.add_row(str(sample.step), verdict, Text(sample.completion))
        console.print(rows)
        console.print()
