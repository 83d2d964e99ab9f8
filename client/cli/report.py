"""``trd report``: one HTML page of a run or of a comparison, to attach to a pull request.

The page needs no script and makes no request: its plots are images within it. It is rendered from the REST API's
answers, so that it works with a remote service. Every text of data is escaped by the template.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from client import Client, TrdError
from client.cli.job_argument import job_id_of
from client.cli.output import JsonFlag, duration, print_json, printable, say
from client.cli.spec_file import flattened
from contract.job_spec import JobSpec
from contract.score_difference import ScoreDifference, score_difference
from contract.views.diagnosis import DiagnosisView
from contract.views.events import EventView
from contract.views.jobs import JobView
from contract.views.runs import EvaluationView, MetricSeries
from contract.views.trajectories import OutcomeCount, TrajectoryView

MAX_JOBS = 6
NUM_PAIRS = 3
MAX_TEXT = 4_000
"""Characters of a trajectory that are shown."""
OUTCOMES = ("fail_to_pass", "pass_to_fail", "both_wrong", "both_right", "wrong", "right")
"""In the order in which examples are taken."""
PLOTTED = ("loss", "divergence_per_token", "divergence_p95", "grad_norm", "rollout_tokens_p50", "refined_tokens_p50")


@dataclass(frozen=True)
class Run:
    """All that the report shows of one job."""

    job: JobView
    label: str
    """Unique within the report."""
    evaluations: Sequence[EvaluationView]
    metrics: dict[str, MetricSeries]
    outcomes: Sequence[OutcomeCount]
    diagnoses: Sequence[DiagnosisView]
    trajectories: Sequence[TrajectoryView]
    attempts: Sequence[EventView]
    """Events in which the job's status changed."""

    @property
    def gain(self) -> ScoreDifference | None:
        """How the score changed by training, on the problems of the last evaluation."""
        if not self.evaluations:
            return None
        last = self.evaluations[-1]
        first = next(one for one in self.evaluations if one.dataset == last.dataset)
        return score_difference(first, last) if first.step < last.step else None

    @property
    def verdicts(self) -> dict[str, int]:
        """Number of trajectories by outcome, over all rounds."""
        counts: dict[str, int] = {}
        for one in self.outcomes:
            counts[str(one.outcome)] = counts.get(str(one.outcome), 0) + one.num_trajectories
        return counts

    @property
    def environment(self) -> dict[str, str]:
        """Versions of the libraries, workers, and times, as far as the run reported them."""
        started = [event.data for event in self.attempts if event.data.get("worker")]
        summaries = [event.data["summary"] for event in self.attempts if event.data.get("summary")]
        workers = dict.fromkeys(str(data["worker"]).rpartition(":")[0] for data in started)
        facts = {"attempts": str(self.job.attempt), "workers": ", ".join(workers)}
        if summaries:
            facts |= {str(name): str(text) for name, text in summaries[-1].get("versions", {}).items()}
            for phase, seconds in summaries[-1].get("seconds_by_phase", {}).items():
                facts[f"time: {phase}"] = duration(seconds)
        return facts


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
        runs = _runs(trd, [job_id_of(trd, name) for name in jobs])
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


def _runs(trd: Client, job_ids: Sequence[str]) -> list[Run]:
    jobs = [trd.jobs.get(job_id) for job_id in dict.fromkeys(job_ids)]
    names = [job.name or f"{job.mode} {job.spec.get('student', '')}" for job in jobs]
    labels = [
        f"{name} …{job.id[-5:]}" if names.count(name) > 1 else name for name, job in zip(names, jobs, strict=True)
    ]
    return [
        Run(
            job,
            printable(label),
            sorted(trd.evaluations.list(job.id), key=lambda one: one.step),
            {series.name: series for series in trd.metrics.list(job.id, PLOTTED)},
            outcomes := trd.trajectories.outcomes(job.id),
            list(trd.diagnoses.list(job.id)),
            _examples(trd, job.id, {str(one.outcome) for one in outcomes}),
            [event for event in trd.events.list(job.id) if event.type == "status"],
        )
        for job, label in zip(jobs, labels, strict=True)
    ]


def _examples(trd: Client, job_id: str, outcomes: set[str]) -> list[TrajectoryView]:
    """Return the first trajectory of each outcome, the most telling ones first."""
    wanted = [name for name in OUTCOMES if name in outcomes][:NUM_PAIRS]
    found = [trajectory for name in wanted for trajectory in trd.trajectories.list(job_id, [name], num_wanted=1)]
    if len(found) < NUM_PAIRS and wanted:
        found += list(trd.trajectories.list(job_id, [wanted[0]], num_wanted=1 + NUM_PAIRS - len(found)))[1:]
    return found


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
