"""Tables from the first round's diagnosis: rollouts, refined texts and contexts, before training."""

from __future__ import annotations

from typing import Any

from benchmarks.paper.tables import SETTINGS, Groups, setting_name, table_or_missing

VIEWS = {
    "rollout": "y_o, vanilla",
    "refined_vanilla": "y_r, vanilla",
    "refined": "y_r, refine",
}
"""Text and teacher context. y_o in the refine context is left out: the teacher would read the text that it scores."""
MAX_DISTANCE = 6


def diagnosis(groups: Groups, teaching: str, student: str, *, section: str = "main", round_index: int = 0) -> Any:
    """Return the report of the setting's diagnosed `trd` run; None if there is none."""
    for row in groups.get((section, teaching, student, "trd"), []):
        for event in row["diagnosis"]:
            if event["round"] == round_index:
                return event["report"]
    return None


def _each_setting(groups: Groups) -> list[tuple[str, Any]]:
    found = [(setting_name(*setting), diagnosis(groups, *setting)) for setting in SETTINGS]
    return [(name, report) for name, report in found if report is not None]


def views_table(groups: Groups) -> list[str]:
    """Return the table of KL, epistemic mass, bimodality and clipping by text and context."""
    lines = []
    for name, report in _each_setting(groups):
        for key, label in VIEWS.items():
            view = report[key]
            shares = [view[n] for n in ("bimodal_share", "break_out_share", "clip_share", "clipped_kl_share")]
            cells = " | ".join(f"{100 * share:.1f}" for share in shares)
            lines.append(
                f"| {name} | {label} | {view['forward_kl']:.3f} | {1000 * view['epistemic_mass']:.2f} | {cells} "
                f"| {100 * view['top1_agreement']:.1f} |"
            )
    return table_or_missing(
        "| setting | text, context | KL a token | epistemic mass, ‰ | bimodal, % | breaks out, % | KL over 0.1, % "
        "of tokens | of KL, above 0.1, % | top-1 agreement, % |",
        lines,
    )


def views_summary(groups: Groups) -> list[str]:
    """Return how much of the fall in epistemic mass is due to the text, and how much to the context."""
    shares = []
    for name, report in _each_setting(groups):
        along_yo, vanilla, refine = (report[key]["epistemic_mass"] for key in VIEWS)
        shares.append(f"{name} {100 * (along_yo - vanilla) / (along_yo - refine):.0f} %")
    said = "Of the fall in epistemic mass from y_o to y_r as it is trained on, the text alone makes up"
    return [f"{said} {', '.join(shares)}; the rest is the context's."] if shares else []


def wrong_step_table(groups: Groups) -> list[str]:
    """Return the table of KL around the first wrong step, and of the onset's mass at later steps."""
    lines = []
    for name, report in _each_setting(groups):
        wrong = report["first_wrong_step"]
        segments = " | ".join(f"{wrong[part]['forward_kl']:.3f}" for part in ("before", "within", "after"))
        lines.append(
            f"| {name} | {wrong['num_wrong']} of {wrong['num_checked']} | {segments} "
            f"| {_masses(wrong['onset_by_step'])} |"
        )
    later = " | ".join(f"{d}{_ordinal(d)} step after" for d in range(1, MAX_DISTANCE))
    head = "| setting | rollouts with a wrong step | KL a token: before it | within | after | steps before it"
    return table_or_missing(f"{head} | {later} |", lines)


def correction_table(groups: Groups) -> list[str]:
    """Return the table of the teacher's mass on the correction's first token, from where y_o and y_r diverge."""
    lines = []
    for name, report in _each_setting(groups):
        parting = report["parting"]
        lines.append(f"| {name} | {parting['num_fail_to_pass']} | {_masses(parting['correction_by_token'])} |")
    later = " | ".join(f"{d}{_ordinal(d)} token after" for d in range(1, MAX_DISTANCE))
    return table_or_missing(f"| setting | corrected pairs | where they diverge | {later} |", lines)


def position_table(groups: Groups) -> list[str]:
    """Return the table of KL per token by tenths of the length."""
    lines = []
    for name, report in _each_setting(groups):
        for key in ("rollout", "refined"):
            bins = " | ".join(_number(each["forward_kl"]) for each in report[key]["by_share"])
            lines.append(f"| {name} | {VIEWS[key]} | {bins} |")
    return table_or_missing(f"| setting | text | {' | '.join(f'{t}0 %' for t in range(1, 11))} |", lines)


def epistemic_by_round_table(groups: Groups) -> list[str]:
    """Return the table of epistemic mass (‰) along y_o and y_r, at each of four rounds of `trd`."""
    lines = []
    for teaching, student in SETTINGS:
        reports = [diagnosis(groups, teaching, student, section="rounds", round_index=r) for r in range(4)]
        if None in reports:
            continue
        for key in VIEWS:
            masses = " | ".join(f"{1000 * report[key]['epistemic_mass']:.2f}" for report in reports)
            lines.append(f"| {setting_name(teaching, student)} | {VIEWS[key]} | {masses} |")
    return table_or_missing("| setting | text | 1st round | 2nd | 3rd | 4th |", lines)


def _masses(points: list[dict[str, Any]]) -> str:
    by_distance = {point["distance"]: point["mass"] for point in points}
    return " | ".join(_number(by_distance.get(distance)) for distance in range(MAX_DISTANCE))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _ordinal(number: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(number, "th")
