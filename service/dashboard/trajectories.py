"""What the student wrote and what refining made of it: the list, one pair side by side, and samples over the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, Field

from contract.views.trajectories import AlignmentView, Outcome
from service.auth import Reader
from service.context import Context
from service.dashboard.job import find_job, job_values
from service.dashboard.pages import page
from service.errors import NotFoundError
from service.runs.service import TrajectoryFilter, detail_view, trajectory_key

router = APIRouter(prefix="/ui/jobs/{job_id}", include_in_schema=False)

NUM_ROWS = 25
MAX_RUN_UNITS = 256
"""Tokens of one element, which a script divides into tokens once it comes into view."""
MAX_SAMPLES = 100

OUTCOMES = {
    Outcome.FAIL_TO_PASS: "wrong → right",
    Outcome.BOTH_RIGHT: "right → right",
    Outcome.BOTH_WRONG: "wrong → wrong",
    Outcome.PASS_TO_FAIL: "right → wrong",
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
}
LEGEND = ("under 0.01", "0.01", "0.03", "0.1", "0.3", "1", "3 and more")
"""Lower bounds of the shades, in nats. The script has the same ones."""

Number = Annotated[int | None, Field(ge=0, lt=2**31), BeforeValidator(lambda value: None if value == "" else value)]


class Wanted(BaseModel):
    """Filters and page, as they stand in the address; an empty field of the form does not filter."""

    outcome: list[Outcome] = []
    round: Number = None
    step: Number = None
    min_tokens: Number = None
    max_tokens: Number = None
    text: Annotated[str, Field(max_length=200)] = ""
    after: Annotated[str, Field(max_length=20)] = ""
    before: Annotated[str, Field(max_length=20)] = ""

    def filter(self, job_id: str) -> TrajectoryFilter:
        """Return what the use cases take."""
        numbers = (self.round, self.step, self.min_tokens, self.max_tokens)
        return TrajectoryFilter(job_id, self.outcome, *numbers, self.text or None)

    @property
    def filters(self) -> list[tuple[str, str]]:
        """The filters that are set."""
        names = ("round", "step", "min_tokens", "max_tokens", "text")
        given = [(name, getattr(self, name)) for name in names]
        outcomes = [("outcome", str(outcome)) for outcome in self.outcome]
        return outcomes + [(name, str(value)) for name, value in given if value not in (None, "")]

    def address(self, path: str, **more: str) -> str:
        """Return the address of a page with these filters."""
        query = urlencode([*self.filters, *more.items()])
        return f"{path}?{query}" if query else path


Asked = Annotated[Wanted, Query()]


@router.get("/trajectories")
def list_trajectories(request: Request, context: Context, caller: Reader, job_id: str, wanted: Asked) -> Response:
    """Show a page of the list, by round and position."""
    job = find_job(context, caller, job_id)
    is_backward = bool(wanted.before)
    cursor = trajectory_key(wanted.before or wanted.after)
    rows, found = context.runs.excerpts(caller.owner, wanted.filter(job_id), cursor, NUM_ROWS, is_backward=is_backward)
    by_outcome: Counter[str] = Counter()
    rounds = set()
    for round, outcome, number in context.runs.num_by_outcome(caller.owner, job_id):
        by_outcome[outcome] += number
        rounds.add(round)
    keys = [f"{row.round}:{row.position}" for row in rows]
    searched_to = ["{}:{}".format(*found.searched_to)] if found.searched_to is not None else []
    first, last = ([*searched_to, *keys][:1], [*keys, *searched_to][-1:])
    return page(
        request,
        "trajectories.html",
        **job_values(job, "trajectories"),
        rows=rows,
        wanted=wanted,
        outcomes=[(outcome, label, by_outcome[outcome]) for outcome, label in OUTCOMES.items() if by_outcome[outcome]],
        labels=OUTCOMES,
        total=by_outcome.total(),
        rounds=sorted(rounds),
        is_cut=bool(searched_to),
        before=first[0] if first and (found.has_more if is_backward else wanted.after) else None,
        after=last[0] if last and (is_backward or found.has_more) else None,
    )


@dataclass
class Part:
    """A run of units of one text with the same operation."""

    op: str
    side: Literal["rollout", "refined"]
    start: int
    end: int
    text: str


@dataclass
class Line:
    """Parts of both texts that stand beside each other."""

    rollout: list[Part] = field(default_factory=list)
    refined: list[Part] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """True if neither text continues on this line."""
        ends = [parts[-1].text.endswith("\n") for parts in (self.rollout, self.refined) if parts]
        return bool(ends) and all(ends)


@router.get("/trajectories/{trajectory_id}")
def show_trajectory(
    request: Request, context: Context, caller: Reader, job_id: str, trajectory_id: str, wanted: Asked
) -> Response:
    """Show one aligned pair; a script shades its tokens."""
    job = find_job(context, caller, job_id)
    key = trajectory_key(trajectory_id)
    row = context.runs.trajectory(caller.owner, job_id, key, with_tokens=True)
    if key is None:
        raise NotFoundError(f"{job_id} has no such trajectory", param="trajectory_id")
    shown = detail_view(row, with_tokens=True, is_aligned=True)
    alignment = shown.alignment
    if alignment is None:
        tokens = shown.tokens.rollout.tokens if shown.tokens is not None else None
        units = tokens or row.rollout.splitlines(keepends=True)
        lines = [Line(rollout=_parts("equal", "rollout", units, 0, len(units)))]
    else:
        lines = lines_of(alignment)
    base = f"/ui/jobs/{job_id}/trajectories"
    before, after = (
        None if other is None else wanted.address("{}/{}:{}".format(base, *other))
        for other in context.runs.neighbours(caller.owner, wanted.filter(job_id), key)
    )
    return page(
        request,
        "trajectory.html",
        **job_values(job, "trajectories"),
        row=shown,
        lines=lines,
        has_tokens=shown.tokens is not None and shown.tokens.rollout.tokens is not None,
        label=OUTCOMES.get(Outcome(shown.outcome), str(shown.outcome)),
        legend=LEGEND,
        list_address=wanted.address(base),
        before=before,
        after=after,
    )


def lines_of(alignment: AlignmentView) -> list[Line]:
    """Return the aligned texts in lines, each of which ends where both texts have the end of a line."""
    lines = [Line()]
    for stretch in alignment.stretches:
        if stretch.op == "equal":
            spans = _divided(alignment.rollout, *stretch.rollout, stretch.refined[0] - stretch.rollout[0])
        else:
            spans = [(stretch.rollout, stretch.refined)]
        for left, right in spans:
            lines[-1].rollout += _parts(stretch.op, "rollout", alignment.rollout, *left)
            lines[-1].refined += _parts(stretch.op, "refined", alignment.refined, *right)
            if lines[-1].is_complete:
                lines.append(Line())
    return lines if lines[-1].rollout or lines[-1].refined else lines[:-1]


Span = tuple[int, int]


def _divided(units: Sequence[str], start: int, end: int, shift: int) -> list[tuple[Span, Span]]:
    """Divide a common stretch after the ends of lines; `shift` leads to the other text's units."""
    ends = [i + 1 for i in range(start, end) if units[i].endswith("\n")]
    edges = sorted({start, *ends, end})
    return [((a, b), (a + shift, b + shift)) for a, b in pairwise(edges)]


def _parts(op: str, side: Literal["rollout", "refined"], units: Sequence[str], start: int, end: int) -> list[Part]:
    edges = [*range(start, end, MAX_RUN_UNITS), end]
    return [Part(op, side, a, b, "".join(units[a:b])) for a, b in pairwise(edges)]


@router.get("/samples")
def samples(
    request: Request,
    context: Context,
    caller: Reader,
    job_id: str,
    step: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
) -> Response:
    """Show the same problems at one evaluation, beside the baseline."""
    job = find_job(context, caller, job_id)
    steps = context.runs.probe_steps(caller.owner, job_id)
    values: dict[str, Any] = job_values(job, "samples")
    if not steps:
        return page(request, "samples.html", **values, steps=[], step=None, pairs=[], scores={})
    shown = min(steps, key=lambda one: abs(one - step)) if step is not None else steps[-1]
    at = {
        one: {row.position: row for row in context.runs.probe_samples(caller.owner, job_id, one, None, MAX_SAMPLES)[0]}
        for one in {steps[0], shown}
    }
    positions = sorted(set(chain.from_iterable(at.values())))
    pairs = [(at[steps[0]].get(position), at[shown].get(position)) for position in positions]
    scores = {row.step: row for row in context.runs.evaluations(caller.owner, job_id)}
    return page(request, "samples.html", **values, steps=steps, step=shown, pairs=pairs, scores=scores)
