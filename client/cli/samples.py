"""``trd samples``: answers to the same problems over the run."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

import typer
from rich.text import Text

from client import Client
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import JsonFlag, answers, print_json, say, table


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
