"""``trd diagnosis``: what each round shows about prefix failure."""

from __future__ import annotations

from client import Client
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import JsonFlag, answers, number, percent, print_json, remark, say, table
from contract.views.diagnosis import ContextFigures

_CONTEXTS = (
    ("rollout", "y_o, vanilla"),
    ("refined", "y_r, refine"),
    ("refined_vanilla", "y_r, vanilla"),
)
"""Fields of a report, with the text and the context in which the teacher scores it."""


def diagnosis(job: JobArgument, as_json: JsonFlag = False) -> None:
    """Show how much student and teacher disagree along y_o and along y_r, by round.

    Forward KL a token and its p99, the teacher's mass on words like "wait", the shares of tokens where it has two
    modes and where one of them breaks out, and of those where both models agree. docs/diagnosis.md tells more.
    """
    with Client() as trd:
        found = list(trd.diagnoses.list(job_id_of(trd, job)))
    if as_json:
        print_json(found)
        return
    if not found:
        say("no diagnosis yet: it is made in each round, unless diagnosis.num_trajectories is 0")
        return
    rows = table("#round", "text, context", "#tokens", "#KL", "#p99", "#wait", "#two modes", "#breaks", "#top-1")
    for row in found:
        for name, label in _CONTEXTS:
            figures: ContextFigures | None = getattr(row.report, name)
            if figures is not None:
                rows.add_row(str(row.round + 1), label, *_figures(figures))
    answers().print(rows)
    for row in found:
        step = row.report.first_wrong_step
        if step is not None and step.num_wrong:
            segments = {"before": step.before, "within": step.within, "after": step.after}
            means = ", ".join(f"{name} {number(segment.forward_kl)}" for name, segment in segments.items())
            remark(
                f"round {row.round + 1}: {step.num_wrong} of {step.num_checked} rollouts have a wrong step; "
                f"mean forward KL of its parts: {means}"
            )


def _figures(context: ContextFigures) -> list[str]:
    shares = (context.bimodal_share, context.break_out_share, context.top1_agreement)
    return [
        str(context.num_tokens),
        number(context.forward_kl),
        number(context.forward_kl_p99),
        f"{1000 * context.epistemic_mass:.2f} ‰" if context.epistemic_mass is not None else "—",
        *(percent(share) if share is not None else "—" for share in shares),
    ]
