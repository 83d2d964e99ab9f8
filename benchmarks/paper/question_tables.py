"""Tables of the two open questions: refining against the teacher's own samples, and long loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from benchmarks.paper.rows import Row
from benchmarks.paper.sections import LOOPS, PAIRINGS, QUESTION_RATES, SUPPORT, SUPPORT_VARIANTS, Pairing
from benchmarks.paper.summary import Estimate, avg_at_k, difference, estimate, mean_of, pass_at_k
from benchmarks.paper.tables import Groups, rate_scores, table_or_missing
from benchmarks.paper.variants import CONTROLS

PHASES = ("rollout", "refining", "training")


def support_table(groups: Groups) -> list[str]:
    """Return the table of each variant at each distance of the teacher's own text from the student.

    The text is what is trained on: y_r of `trd`, the teacher's own samples of `kd_teacher_samples`, y_o of the
    baseline. Its distance is the untrained student's mean negative log-likelihood, in nats a token; beside it is the
    forward KL that is trained (the baseline's is another divergence).
    """
    lines = [*_support_lines(_usual(groups), native_share=0.0)]
    for pairing in SUPPORT:
        lines += _support_lines(_of(groups, pairing), pairing.native_share)
    return table_or_missing(
        "| teacher's own style | variant | seeds | text right | nats/token before | nats/token at the end "
        "| divergence before | avg@8 | pass@8 | trd less this |",
        lines,
    )


def support_gains(groups: Groups) -> list[tuple[str, Estimate]]:
    """Return the teacher's share of solutions in its own style, and `trd` minus `kd_teacher_samples`."""
    gains = []
    for pairing in SUPPORT:
        found = _of(groups, pairing)
        if {"trd", "kd_teacher_samples"} <= found.keys():
            gain = difference(avg_at_k(found["trd"]), avg_at_k(found["kd_teacher_samples"]))
            gains.append((f"{100 * pairing.native_share:.0f} % of its solutions in that style", gain))
    return gains


def _usual(groups: Groups) -> dict[str, list[Row]]:
    """Return the same variants with the default teacher, which has no own style."""
    keys = {name: ("controls" if name in CONTROLS else "main", "opd", "gap", name) for name in SUPPORT_VARIANTS}
    return {name: groups[key] for name, key in keys.items() if key in groups}


def _support_lines(found: dict[str, list[Row]], native_share: float) -> Iterator[str]:
    for variant, rows in found.items():
        text = "rollout_accuracy" if variant == "reverse_kl_topk" else "refined_accuracy"
        cells = [
            f"{100 * mean_of(rows, lambda r, n=text: r['rounds'][0][n]):.1f}",
            _at_first_step(rows, lambda step: math.log(step["student_perplexity"])),
            f"{mean_of(rows, lambda r: math.log(r['last_step']['student_perplexity'])):.3f}",
            _at_first_step(rows, lambda step: step["divergence_per_token"]),
            str(estimate(avg_at_k(rows))),
            str(estimate(pass_at_k(rows))),
            _less(found, "trd", variant),
        ]
        yield f"| {100 * native_share:.0f} % | {_label(variant)} | {len(rows)} | {' | '.join(cells)} |"


def _at_first_step(rows: Sequence[Row], read: Callable[[dict[str, float]], float]) -> str:
    """Return the mean over the rows that have the value; rows of other sections may not have it."""
    known = [row for row in rows if "first_step" in row]
    return f"{mean_of(known, lambda row: read(row['first_step'])):.3f}" if known else ""


def loops_table(groups: Groups) -> list[str]:
    """Return lengths, sampled tokens, seconds by phase and scores of a student that writes long loops."""
    header = ["variant", "seeds", "y_o tokens, median", "y_r tokens, median", "y_o tokens", "y_r tokens"]
    header += [f"{phase} s" for phase in PHASES]
    header += ["these s", "tokens of an answer after", "avg@8", "pass@8", "trd less this"]
    lines = []
    found = _of(groups, LOOPS[0])
    for variant, rows in found.items():
        timed = groups.get(("timing", "opd", "loops", variant), [])
        metrics, totals = rows[0]["rounds"][0], ("rollout", "refined")
        cells = [
            f"{mean_of(rows, lambda r, n=name: r['rounds'][0][n]):.0f}" if name in metrics else ""
            for name in ("rollout_tokens_p50", "refined_tokens_p50")
        ]
        sampled = [mean_of(rows, lambda r, n=name: sum(r["sampled_tokens"][n])) for name in totals]
        cells += [f"{total:,.0f}" if total else "" for total in sampled]
        cells += _cost_cells(timed)
        cells.append(f"{mean_of(rows, lambda r: r['after']['mean_tokens']):.0f}")
        cells += [str(estimate(avg_at_k(rows))), str(estimate(pass_at_k(rows))), _less(found, "trd", variant)]
        lines.append(f"| {_label(variant)} | {len(rows)} | {' | '.join(cells)} |")
    return table_or_missing(f"| {' | '.join(header)} |", lines)


def _cost_cells(timed: Sequence[Row]) -> Iterator[str]:
    """Return seconds by phase of the run without other load, if there is one."""
    if not timed:
        yield from [""] * (len(PHASES) + 1)
        return
    seconds = [timed[0]["seconds_by_phase"].get(phase, 0.0) for phase in PHASES]
    yield from (f"{each:.1f}" if each else "" for each in seconds)
    yield f"{sum(seconds):.1f}"


def question_rate_table(groups: Groups) -> list[str]:
    """Return validation avg@k at every tried rate of these sections, the chosen one in bold."""
    lines = [
        f"| {pairing.section} | {variant} | {' | '.join(rate_scores(rows, QUESTION_RATES))} |"
        for pairing in itertools.chain(*PAIRINGS.values())
        for variant in pairing.variants
        if (rows := groups.get((pairing.rate_section, "opd", pairing.student, variant)))
    ]
    return table_or_missing(f"| section | variant | {' | '.join(f'{rate:g}' for rate in QUESTION_RATES)} |", lines)


def _of(groups: Groups, pairing: Pairing) -> dict[str, list[Row]]:
    keys = {variant: (pairing.section, "opd", pairing.student, variant) for variant in pairing.variants}
    return {variant: groups[key] for variant, key in keys.items() if key in groups}


def _less(found: dict[str, list[Row]], name: str, other: str) -> str:
    """Return the paired difference of two variants in points of avg@k; empty for equal variants."""
    if name == other or name not in found:
        return ""
    return str(difference(avg_at_k(found[name]), avg_at_k(found[other])))


def _label(variant: str) -> str:
    return f"**{variant}**" if variant == "trd" else variant
