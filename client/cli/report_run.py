"""What ``trd report`` shows of each job, read from the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client import Client
from client.cli.output import duration, printable
from contract.score_difference import ScoreDifference, score_difference
from contract.views.diagnosis import DiagnosisView
from contract.views.events import EventView
from contract.views.jobs import JobView
from contract.views.runs import EvaluationView, MetricSeries
from contract.views.trajectories import OutcomeCount, TrajectoryView

NUM_PAIRS = 3
"""Trajectories that are shown, over all runs."""
OUTCOMES = ("fail_to_pass", "pass_to_fail", "both_wrong", "both_right", "wrong", "right")
"""Outcomes in the order in which examples are taken."""
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


def read_runs(trd: Client, job_ids: Sequence[str]) -> list[Run]:
    """Return what the service has of these jobs, each once."""
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
