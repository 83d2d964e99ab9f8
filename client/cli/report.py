"""``trd report``: one HTML page of a run or of a comparison, to attach to a pull request.

The page needs no script and makes no request: its plots are images within it. It is rendered from the REST API's
answers, so that it works with a remote service. Every text of data is escaped by the template.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from client import Client, TrdError
from client.cli.job_argument import job_id_of
from client.cli.output import JsonFlag, print_json, printable, say
from client.cli.report_run import NUM_PAIRS, Run, read_runs
from client.cli.spec_file import flattened
from contract.job_spec import JobSpec
from contract.score_difference import score_difference

MAX_JOBS = 6
MAX_TEXT = 4_000
"""Characters of a trajectory that are shown."""


def report(
    jobs: Annotated[
        list[str], typer.Argument(metavar="JOB…", help="Up to six jobs, by id or as 'latest'.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    with_png: Annotated[bool, typer.Option("--png", help="Also write each plot as a PNG beside the page.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write one HTML page about a run, or about several side by side: scores, curves, verdicts, examples, spec.

    The page is one file without scripts. Needs the extra trd-service[report].
    """
    try:
        import jinja2

        from client.cli.report_plots import panels
        from trd_data.plots import draw, png, svg
    except ImportError as error:
        raise TrdError(f"{error.name} is not installed", hint="pip install 'trd-service[report]'") from None
    if len(jobs) > MAX_JOBS:
        raise TrdError(f"{len(jobs)} jobs: a report has at most {MAX_JOBS}", hint="leave some out")
    with Client() as trd:
        runs = read_runs(trd, [job_id_of(trd, name) for name in jobs])
    plots = panels(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        runs=runs,
        plots=[(plot.title, base64.b64encode(svg(draw([plot], has_titles=False))).decode()) for plot in plots],
        spec_rows=spec_rows(runs),
        pairs=[(run, pair) for run in runs for pair in run.trajectories[: max(1, NUM_PAIRS // len(runs))]],
        score_difference=score_difference,
        max_text=MAX_TEXT,
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=version("trd-service"),
    )
    out.write_text(page, encoding="utf-8")
    written = [out]
    for plot in plots if with_png else ():
        written.append(out.with_name(f"{out.stem}-{plot.name}.png"))
        written[-1].write_bytes(png(draw([plot])))
    if as_json:
        print_json({"object": "report", "files": [str(path) for path in written], "jobs": [run.job.id for run in runs]})
        return
    for path in written:
        say(str(path))


def spec_rows(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Return the fields that differ from the defaults in any run, with each run's value and whether the runs differ."""
    specs = [flattened(run.job.spec) for run in runs]
    defaults = [_defaults(run.job.spec) for run in runs]
    rows = []
    for path in dict.fromkeys(path for spec in specs for path in spec):
        values = [spec.get(path) for spec in specs]
        differ = any(value != values[0] for value in values)
        if differ or any(value != default.get(path, value) for value, default in zip(values, defaults, strict=True)):
            rows.append((path, [json.dumps(value, ensure_ascii=False) for value in values], differ))
    return rows


def _defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the resolved spec that has only this one's required fields; empty if a newer service wrote it."""
    required: dict[str, Any] = {name: spec[name] for name in ("mode", "student", "teacher", "dataset") if name in spec}
    try:
        resolved = flattened(JobSpec.model_validate(required).resolved().model_dump(mode="json"))
    except ValueError:
        return {}
    return {**resolved, **dict.fromkeys(flattened(required))}


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
