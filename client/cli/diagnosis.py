"""``trd diagnosis``: what each round says of prefix failure."""

from __future__ import annotations

from typing import Any

from client import Client
from client.answers import Diagnosis
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import JsonFlag, answers, number, percent, print_json, remark, say, table

_CONTEXTS = (
    ("rollout", "y_o, vanilla"),
    ("refined", "y_r, refine"),
    ("refined_vanilla", "y_r, vanilla"),
)
"""Of a report, and what they are: the text, and the context in which the teacher scores it."""


def diagnosis(job: JobArgument, as_json: JsonFlag = False) -> None:
    """Show how student and teacher disagree along y_o and along y_r, by round.

    Forward KL a token and its p99, the teacher's mass on words like "wait", the shares of tokens where it has two
    modes and where one of them breaks out, and of those where both models agree. docs/diagnosis.md tells more.
    """
    with Client() as trd:
        found = list(trd.diagnoses.list(job_id_of(trd, job)))
    if as_json:
        print_json(found)
        return
    if not found:
        say("no diagnosis yet: it comes with each round's trajectories, unless diagnosis.num_trajectories is 0")
        return
    rows = table("#round", "text, context", "#tokens", "#KL", "#p99", "#wait", "#two modes", "#breaks", "#top-1")
    for row in found:
        for name, label in _CONTEXTS:
            if row.report.get(name) is not None:
                rows.add_row(str(row.round + 1), label, *_figures(row.report[name]))
    answers().print(rows)
    for row in found:
        _remark_first_wrong_step(row)


def _figures(context: dict[str, Any]) -> list[str]:
    shares = ("bimodal_share", "break_out_share", "top1_agreement")
    return [
        str(context["num_tokens"]),
        number(context["forward_kl"]),
        number(context["forward_kl_p99"]),
        _per_mille(context["epistemic_mass"]),
        *(percent(context[name]) if context[name] is not None else "—" for name in shares),
    ]


def _per_mille(mass: float | None) -> str:
    return f"{1000 * mass:.2f} ‰" if mass is not None else "—"


def _remark_first_wrong_step(row: Diagnosis) -> None:
    step = row.report.get("first_wrong_step")
    if step is None or not step["num_wrong"]:
        return
    stretches = ", ".join(f"{name} {number(step[name]['forward_kl'])}" for name in ("before", "within", "after"))
    remark(
        f"round {row.round + 1}: {step['num_wrong']} of {step['num_checked']} rollouts have a wrong step; "
        f"forward KL around the first: {stretches}"
    )
