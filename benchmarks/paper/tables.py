"""The report's tables, made from the rows; a table without rows says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.machine import table
from benchmarks.paper.rows import Row
from benchmarks.paper.summary import Factors, avg_at_k, difference, estimate, mean_of, pass_at_k
from benchmarks.paper.variants import BASELINES, CONTROLS, MAIN, VARIANTS

Groups = dict[Factors, list[Row]]
SETTINGS = (("opd", "gap"), ("opsd", "gap"), ("opd", "slips"), ("opsd", "slips"))
MAIN_NAMES, CONTROL_NAMES = tuple(MAIN), tuple(CONTROLS)
MISSING = "These runs are not among the committed rows; `python -m benchmarks.paper --full` makes them."


def table_or_missing(head: str, rows: Iterable[str]) -> list[str]:
    """Return the table; without rows, what is said instead."""
    lines = table(head, rows)
    return lines if len(lines) > 2 else [MISSING]


def setting_name(teaching: str, student: str) -> str:
    """Return the setting's name for headings and legends."""
    return f"{teaching.upper()}, {student}"


def best_baseline(groups: Groups, section: str, teaching: str, student: str) -> str | None:
    """Return the baseline with the highest avg@k; None if there is none."""
    found = {name: groups[key] for name in BASELINES if (key := (section, teaching, student, name)) in groups}
    return max(found, key=lambda name: float(avg_at_k(found[name]).mean())) if found else None


def score_table(groups: Groups, section: str, variants: Sequence[str]) -> list[str]:
    """Return avg@k and pass@k of each variant, and its paired difference from the setting's best baseline."""
    rows = [line for setting in SETTINGS for line in _setting_lines(groups, section, variants, *setting)]
    return table_or_missing(
        "| setting | variant | seeds | avg@8 | pass@8 | avg@8 less the best baseline's | pass@8 less its |", rows
    )


def _setting_lines(groups: Groups, section: str, variants: Sequence[str], teaching: str, student: str) -> Iterator[str]:
    compared_in = section if any(name in BASELINES for name in variants) else "main"
    best = best_baseline(groups, compared_in, teaching, student)
    found = [groups[key] for key in groups if key[:3] == (section, teaching, student)]
    name = setting_name(teaching, student)
    # From one variant: the untrained student is the same for all, and new rows may measure it in another variant.
    before = next((scored for rows in found if (scored := [row for row in rows if row["before"]])), [])
    if before:
        average, passed = estimate(avg_at_k(before, "before")), estimate(pass_at_k(before, "before"))
        yield f"| {name} | before | | {average} | {passed} | | |"
    for variant in variants:
        rows = groups.get((section, teaching, student, variant))
        if rows is None:
            continue
        scores = avg_at_k(rows)
        label = f"**{variant}**" if variant == "trd" else variant
        versus = " | "
        if best is not None and variant != best:
            others = groups[compared_in, teaching, student, best]
            versus = f"{difference(scores, avg_at_k(others))} | {difference(pass_at_k(rows), pass_at_k(others))}"
        elif variant == best:
            versus = "(best baseline) |"
        yield f"| {name} | {label} | {len(rows)} | {estimate(scores)} | {estimate(pass_at_k(rows))} | {versus} |"


def control_table(groups: Groups) -> list[str]:
    """Return `trd` minus each control, which shows the effect of the part that the control leaves out."""
    lines = []
    for teaching, student in SETTINGS:
        trd = groups.get(("main", teaching, student, "trd"))
        controls = [groups.get(("controls", teaching, student, name)) for name in CONTROLS]
        if trd and any(controls):
            gains = [str(difference(avg_at_k(trd), avg_at_k(rows))) if rows else "" for rows in controls]
            lines.append(f"| {setting_name(teaching, student)} | {' | '.join(gains)} |")
    return table_or_missing(f"| setting | {' | '.join(f'`trd` less `{name}`' for name in CONTROLS)} |", lines)


def cost_table(groups: Groups) -> list[str]:
    """Return sampled tokens and seconds by phase of TRD and the best baseline."""
    lines = []
    for section, teaching, student, variant in groups:
        if section == "timing" and variant in (best_baseline(groups, "main", teaching, student), "trd"):
            rows = groups[section, teaching, student, variant]
            tokens = [
                f"{mean_of(rows, lambda r, n=name: sum(r['sampled_tokens'][n])):,.0f}"
                for name in ("rollout", "refined")
            ]
            seconds = [
                f"{mean_of(rows, lambda r, n=name: r['seconds_by_phase'].get(n, 0.0)):.1f}"
                for name in ("rollout", "refining", "training")
            ]
            lines.append(f"| {setting_name(teaching, student)} | {variant} | {' | '.join(tokens + seconds)} |")
    return table_or_missing(
        "| setting | variant | y_o tokens | y_r tokens | rollout s | refining s | training s |", lines
    )


DIAGNOSED = {
    "rollout_accuracy": "y_o right",
    "refined_accuracy": "y_r right",
    "fail_to_pass": "fail→pass",
    "pass_to_fail": "pass→fail",
    "rollout_tokens_p50": "y_o tokens, median",
    "refined_tokens_p50": "y_r tokens, median",
}


def diagnosis_table(groups: Groups) -> list[str]:
    """Return the engine's metrics of TRD's first round, mean over the seeds."""
    lines = []
    for key in (key for key in groups if key[0] == "main" and key[3] == "trd"):
        values = [f"{mean_of(groups[key], lambda r, n=name: r['rounds'][0][n]):.3g}" for name in DIAGNOSED]
        lines.append(f"| {setting_name(key[1], key[2])} | {' | '.join(values)} |")
    return table_or_missing(f"| setting | {' | '.join(DIAGNOSED.values())} |", lines)


def restart_table(groups: Groups) -> list[str]:
    """Return how often students write `wait`, and whether the answers are then correct."""
    lines = [
        f"| {setting_name(*setting)} | {variant} | {_restarts(rows)} |"
        for setting in SETTINGS
        for variant in MAIN_NAMES
        if (rows := groups.get(("main", *setting, variant)))
    ]
    head = "| setting | variant | answers with `wait`, % | of these right, % | of the others right, % | tokens |"
    return table_or_missing(head, lines)


def _restarts(rows: Sequence[Row]) -> str:
    after = [row["after"] for row in rows]
    total = sum(score["k"] * len(score["num_correct"]) for score in after)
    right = sum(sum(score["num_correct"]) for score in after)
    restarting, restarting_right = (sum(s[n] for s in after) for n in ("num_restarting", "num_restarting_correct"))
    cells = [
        f"{100 * restarting / total:.1f}",
        f"{100 * restarting_right / restarting:.1f}" if restarting else "",
        f"{100 * (right - restarting_right) / (total - restarting):.1f}",
        f"{sum(score['mean_tokens'] for score in after) / len(after):.1f}",
    ]
    return " | ".join(cells)


def learning_rate_table(groups: Groups) -> list[str]:
    """Return validation avg@k at every tried rate, the chosen one in bold."""
    rows = [row for key, found in groups.items() if key[0] == "learning_rate" for row in found]
    rates = sorted({row["cell"]["learning_rate"] for row in rows})
    lines = [
        f"| {setting_name(*setting)} | {variant} | {' | '.join(rate_scores(found, rates))} |"
        for setting in SETTINGS
        for variant in VARIANTS
        if (found := groups.get(("learning_rate", *setting, variant)))
    ]
    return table_or_missing(f"| setting | variant | {' | '.join(f'{rate:g}' for rate in rates)} |", lines)


def rate_scores(rows: Sequence[Row], rates: Sequence[float]) -> list[str]:
    """Return avg@k at each rate, the best in bold; empty for a rate that was not tried."""
    scores = {row["cell"]["learning_rate"]: float(avg_at_k([row]).mean()) for row in rows}
    best = max(sorted(scores), key=scores.__getitem__)
    shown = {rate: f"{100 * score:.1f}" for rate, score in scores.items()}
    shown[best] = f"**{shown[best]}**"
    return [shown.get(rate, "") for rate in rates]
