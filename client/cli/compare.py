"""``trd compare``: two jobs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.text import Text

from client import Client
from client.cli.chart import Curve, draw
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.jobs import took
from client.cli.output import JsonFlag, answers, number, percent, plain, print_json, say, status_text, table
from client.cli.spec_file import flattened
from contract.views.jobs import JobView
from contract.views.runs import EvaluationView, MetricSeries


@dataclass(frozen=True)
class _Side:
    """One of the two jobs with its scores."""

    job: JobView
    scores: Sequence[EvaluationView]
    curves: dict[str, MetricSeries]


def compare(
    first: JobArgument,
    second: JobArgument,
    metric: Annotated[list[str] | None, typer.Option("--metric", "-m", help="Metrics to plot in one chart.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare two jobs: differences of their specs, scores and metrics, and their curves in one chart."""
    wanted = metric or ["loss"]
    with Client() as trd:
        left, right = (_side(trd, job_id_of(trd, name), wanted) for name in (first, second))
    differences = spec_differences(left.job.spec, right.job.spec)
    if as_json:
        sides = [{"job": plain(side.job), "evaluations": [plain(row) for row in side.scores]} for side in (left, right)]
        print_json({"object": "comparison", "jobs": sides, "spec_differences": differences})
        return
    console = answers()
    rows = table("", left.job.id, right.job.id)
    for label, values in _facts(left, right):
        rows.add_row(Text(label, style="dim"), *values)
    console.print(rows)
    console.print()
    if differences:
        specs = table("field", left.job.name or "first", right.job.name or "second", title="Specs differ in")
        for path, (one, other) in differences.items():
            specs.add_row(path, Text(str(one)), Text(str(other)))
        console.print(specs)
    else:
        say("the specs are the same")
    for name in wanted:
        curves = [
            Curve(f"{side.job.name or 'job'} …{side.job.id[-6:]}", side.curves[name])
            for side in (left, right)
            if name in side.curves
        ]
        if curves:
            console.print()
            draw(name, curves)


def _side(trd: Client, job_id: str, names: list[str]) -> _Side:
    series = {one.name: one for one in trd.metrics.list(job_id, names)}
    return _Side(trd.jobs.get(job_id), trd.evaluations.list(job_id), series)


def spec_differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the fields that differ, by path, with both values; without names and tags."""
    one, other = flattened(left), flattened(right)
    paths = [path for path in {**one, **other} if path.partition(".")[0] not in ("name", "tags", "metadata")]
    return {path: [one.get(path), other.get(path)] for path in paths if one.get(path) != other.get(path)}


def _facts(left: _Side, right: _Side) -> list[tuple[str, tuple[str | Text, str | Text]]]:
    rows: list[tuple[str, tuple[str | Text, str | Text]]] = [
        ("name", (left.job.name or "", right.job.name or "")),
        ("status", (status_text(left.job.status), status_text(right.job.status))),
        ("steps", (_steps(left.job), _steps(right.job))),
        ("took", (took(left.job) or "", took(right.job) or "")),
    ]
    for kind in ("avg", "pass"):
        for when, index in (("before", 0), ("after", -1)):
            rows.append((f"{kind}@k {when}", (_score(left.scores, kind, index), _score(right.scores, kind, index))))
    ours, theirs = left.job.latest_metrics, right.job.latest_metrics
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            rows.append((name, (number(ours[name]), number(theirs[name]))))
    return rows


def _steps(job: JobView) -> str:
    return f"{job.step} of {job.num_steps or '?'}"


def _score(scores: Sequence[EvaluationView], kind: str, index: int) -> str:
    if not scores:
        return ""
    row = scores[index]
    low, high = (100 * getattr(row, f"{kind}_{end}") for end in ("low", "high"))
    return f"{percent(getattr(row, f'{kind}_at_k'))}  ({low:.1f} … {high:.1f}), k = {row.k}"
