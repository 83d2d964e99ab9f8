"""The paper's claims, each with our figure and a verdict computed from the figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import table
from benchmarks.paper.catch_up import TRAINING_PHASES
from benchmarks.paper.mechanism import diagnosis
from benchmarks.paper.rows import Row
from benchmarks.paper.summary import Estimate, avg_at_k, difference, mean_of, pass_at_k
from benchmarks.paper.tables import MISSING, SETTINGS, Groups, best_baseline, setting_name

Settings = Sequence[tuple[str, str]]
LOOPS: Settings = (("opd", "loops"),)
NOT_TESTABLE = "not testable here"
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, our result, and whether they agree."""

    paper: str
    ours: str
    verdict: str

    @classmethod
    def by_setting(cls, paper: str, findings: Sequence[tuple[str, bool]]) -> Claim:
        """Build a claim from (figure, does it agree?) of each setting."""
        agreeing = [agrees for _, agrees in findings]
        verdict = "reproduced" if all(agreeing) else "reproduced in part" if any(agreeing) else "not reproduced"
        return cls(paper, "; ".join(figure for figure, _ in findings), verdict if findings else NOT_RUN)


def claims_table(groups: Groups) -> list[str]:
    """Return the table with one row per claim."""
    if not any(key[0] == "main" for key in groups):
        return [MISSING]
    rows = (f"| {c.paper} | {c.ours or MISSING} | **{c.verdict}** |" for c in claims(groups))
    return table("| the paper | here | verdict |", rows)


def claims(groups: Groups) -> list[Claim]:
    """Return all claims, the testable ones first."""
    return [
        *_students(groups),
        *_refining(groups),
        *_mechanism(groups),
        *_alternatives(groups),
        Claim(
            "A gain at 1.7B to 8B, on AIME, HMMT, BeyondAIME, AMOBench, and the largest for 8B in OPSD",
            "models of 0.4M on one task; the spec takes the paper's models, and the task files of its benchmarks",
            NOT_TESTABLE,
        ),
        Claim("LiveCodeBench does not improve", "no code here; the `code` task and its loader are there", NOT_TESTABLE),
    ]


def _students(groups: Groups) -> list[Claim]:
    def gain(score: Callable[..., Any]) -> list[tuple[str, bool]]:
        found = []
        for name, trd, best in _trd_and_best(groups):
            estimate = difference(score(trd), score(best))
            found.append((f"{name}: {_points(estimate)}", estimate.low > 0))
        return found

    return [
        Claim.by_setting("A better student than every baseline: AIME24 +4.6 (1.7B, OPD), avg@k", gain(avg_at_k)),
        Claim.by_setting("And a higher pass@k: AMOBench 41.0 → 61.5 (8B, OPSD)", gain(pass_at_k)),
    ]


def _refining(groups: Groups) -> list[Claim]:
    corrected, lengths, seconds = [], [], []
    for name, rows in _trd(groups):
        right, refined, fixed, broken = (
            100 * _metric(rows, metric)
            for metric in ("rollout_accuracy", "refined_accuracy", "fail_to_pass", "pass_to_fail")
        )
        figure = f"{name}: {right:.0f} → {refined:.0f} %, {fixed:.1f} %, {broken:.1f} %"
        corrected.append((figure, refined > right and fixed > 10 * broken))
    for name, rows in [*_trd(groups), *_trd(groups, "loops", LOOPS)]:
        before, after = (_metric(rows, metric) for metric in ("rollout_tokens_p50", "refined_tokens_p50"))
        lengths.append((f"{name}: {before:.0f} → {after:.0f}", after < before))
    for name, trd, best in [*_trd_and_best(groups, "timing"), *_trd_and_best(groups, "timing", "loops", LOOPS)]:
        ratio = _seconds(trd) / _seconds(best)
        seconds.append((f"{name}: {ratio:.2f} ×", ratio < 1.1))
    return [
        Claim.by_setting("Refining corrects: right 65.8 → 81.4 %, fail→pass 16.0 %, pass→fail 0.4 %", corrected),
        Claim.by_setting("y_r is shorter: median 7.7K → 0.88K tokens", lengths),
        Claim.by_setting("As fast as the baseline: 9:20 against 9:40 (rollout, refining and training)", seconds),
    ]


def _mechanism(groups: Groups) -> list[Claim]:
    failing, onsets, fragments, through = [], [], [], []
    for setting in SETTINGS:
        report, name = diagnosis(groups, *setting), setting_name(*setting)
        if report is None:
            continue
        wrong, views = report["first_wrong_step"], [report[view] for view in ("rollout", "refined")]
        before, after = (wrong[part]["forward_kl"] for part in ("before", "after"))
        failing.append((f"{name}: KL {before:.3f} → {after:.3f}", after > 3 * before))
        masses = [1000 * view["epistemic_mass"] for view in views]
        onsets.append((f"{name}: {masses[0]:.1f} and {masses[1]:.2f} ‰", masses[0] > 3 * masses[1]))
        points = {point["distance"]: point["mass"] for point in report["parting"]["correction_by_token"]}
        later = [points[d] for d in range(1, 6) if points.get(d) is not None]
        mean_later = sum(later) / len(later)
        fragments.append((f"{name}: {points[0]:.2f}, then {mean_later:.3f} a token", mean_later > 0.02))
        two_modes = [100 * view["bimodal_share"] for view in views]
        through.append((f"{name}: {two_modes[0]:.1f} and {two_modes[1]:.1f} %", two_modes[0] > 2 * two_modes[1]))
    return [
        Claim.by_setting(
            "On a failed prefix the two models keep disagreeing (KL a token before and after the first wrong step)",
            failing,
        ),
        Claim.by_setting("The teacher is of two minds along y_o, not along y_r (bimodal tokens)", through),
        Claim.by_setting("Epistemic onsets: 6–8 ‰ along y_o, under 2 ‰ along y_r", onsets),
        Claim.by_setting(
            "The gradient is fragmented: a correction's first token is proposed again and again (mass where y_o and "
            "y_r part, then at the five tokens after)",
            fragments,
        ),
    ]


def _alternatives(groups: Groups) -> list[Claim]:
    def against(section: str, name: str, other_section: str, other: str) -> list[tuple[str, bool]]:
        found = []
        for teaching, student in SETTINGS:
            rows = groups.get((section, teaching, student, name))
            others = groups.get((other_section, teaching, student, other))
            if rows and others:
                estimate = difference(avg_at_k(rows), avg_at_k(others))
                found.append((f"{setting_name(teaching, student)}: {_points(estimate)}", estimate.high < 0))
        return found

    return [
        Claim.by_setting(
            "Clamping the token loss is no cure (`forward_kl_clip` less `trd`)",
            against("main", "forward_kl_clip", "main", "trd"),
        ),
        Claim.by_setting(
            "Nor is another divergence on y_o (`reverse_kl_topk` less `trd`)",
            against("main", "reverse_kl_topk", "main", "trd"),
        ),
        Claim.by_setting(
            "Keeping only the failed and corrected trajectories hurts (`trd_fail_to_pass` less `trd`)",
            against("controls", "trd_fail_to_pass", "main", "trd"),
        ),
    ]


def _trd(groups: Groups, section: str = "main", settings: Settings = SETTINGS) -> Iterable[tuple[str, list[Row]]]:
    for teaching, student in settings:
        if rows := groups.get((section, teaching, student, "trd")):
            yield setting_name(teaching, student), rows


def _trd_and_best(
    groups: Groups, section: str = "main", scored_in: str = "main", settings: Settings = SETTINGS
) -> Iterable[tuple[str, list[Row], list[Row]]]:
    """Return each setting's rows of `trd` and of the baseline with the best score in the section `scored_in`."""
    for teaching, student in settings:
        best = best_baseline(groups, scored_in, teaching, student)
        trd = groups.get((section, teaching, student, "trd"))
        others = groups.get((section, teaching, student, best or ""))
        if trd and others:
            yield setting_name(teaching, student), trd, others


def _metric(rows: Sequence[Row], name: str) -> float:
    return mean_of(rows, lambda row: row["rounds"][0][name])


def _seconds(rows: Sequence[Row]) -> float:
    return mean_of(rows, lambda row: sum(row["seconds_by_phase"].get(phase, 0.0) for phase in TRAINING_PHASES))


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
