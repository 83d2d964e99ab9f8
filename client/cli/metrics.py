"""``trd metrics``: the metrics of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from client import Client
from client.cli.chart import HEIGHT, Curve, draw, sparkline
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import JsonFlag, answers, moment, number, print_json, say, table
from client.errors import NotFoundError, Refusal
from contract.views.runs import MetricSeries

SPARKLINE_WIDTH = 30
Step = Annotated[int | None, typer.Option(min=0)]


def metrics(
    job: JobArgument,
    names: Annotated[
        list[str] | None, typer.Argument(help="Metrics to plot; none lists all of them.", show_default=False)
    ] = None,
    from_step: Step = None,
    to_step: Step = None,
    resolution: Annotated[
        int | None, typer.Option(min=2, max=10_000, help="Approximate maximum number of points per metric.")
    ] = None,
    height: Annotated[int, typer.Option(min=5, max=200, help="Height of a chart in lines.")] = HEIGHT,
    as_json: JsonFlag = False,
) -> None:
    """Plot a job's metrics in the terminal, or list them: trd metrics JOB loss grad_norm"""
    wanted = names or []
    with Client() as trd:
        job_id = job_id_of(trd, job)
        series = trd.metrics.list(job_id, wanted, from_step=from_step, to_step=to_step, resolution=resolution)
        removed = None if series else trd.jobs.get(job_id).removed_before.get("metrics")
        known = {one.name for one in series}
        missing = [name for name in wanted if name not in known and removed is None]
        if missing:
            there = ", ".join(one.name for one in trd.metrics.list(job_id, resolution=2)) or "none yet"
            refusal = Refusal(404, f"{job_id} has no metric {', '.join(missing)}; there are: {there}")
            raise NotFoundError(refusal)
    if as_json:
        print_json(series)
    elif removed is not None:
        say(f"no metrics: those from before {moment(removed)} were removed by the service's retention policy")
    elif not series:
        say("no metrics yet: the first arrive with the first step")
    elif wanted:
        for one in sorted(series, key=lambda one: wanted.index(one.name)):
            draw(one.name, [Curve(None, one)], height=height)
    else:
        _list(series)


def _list(series: Sequence[MetricSeries]) -> None:
    rows = table("metric", "#points", "#first", "#last", "#lowest", "#highest", "course")
    for one in series:
        finite = [value for value in one.values if value is not None]
        course = sparkline(one.values, SPARKLINE_WIDTH) if len(one.values) > 1 else ""
        ends = [number(finite[0]), number(finite[-1]), number(min(finite)), number(max(finite))] if finite else [""] * 4
        rows.add_row(one.name, str(one.num_points), *ends, course)
    answers().print(rows)
