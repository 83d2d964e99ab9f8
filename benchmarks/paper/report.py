"""``docs/paper.md``: written from the rows, every number of it. The words between are here; the answer is computed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.paper import tables
from benchmarks.paper.figures import score_plot
from benchmarks.paper.rows import Row
from benchmarks.paper.summary import avg_at_k, difference, group
from benchmarks.paper.tables import CONTROL_NAMES, MAIN_NAMES, SETTINGS, Groups, best_baseline, setting_name
from benchmarks.paper.variants import VARIANTS


def write(rows: list[Row], results: Path, report: Path) -> None:
    """Write the plots to `results` and the page to `report`."""
    groups = group(rows)
    plots = {section: score_plot(groups, section, results / f"{section}.svg") for section in ("main", "rounds", "lora")}
    page = "\n".join(_page(groups, rows, plots, _relative(results, report.parent)))
    report.write_text(page + "\n", encoding="utf-8")


def _relative(results: Path, base: Path) -> str:
    return Path("..", results.resolve().relative_to(base.resolve().parent)).as_posix()


def _page(groups: Groups, rows: list[Row], plots: dict[str, bool], results: str) -> list[str]:
    def plot(section: str) -> list[str]:
        return [f"![avg@8 of the variants]({results}/{section}.svg)", ""] if plots[section] else []

    return [
        "# The paper in small",
        "",
        "Written by `python -m benchmarks.paper --report-only` from `benchmarks/paper/results/runs.jsonl`.",
        "",
        "## The answer",
        "",
        *answer(groups),
        "",
        *plot("main"),
        "Each run distils a student of 0.43M parameters ([the testbed](../testbed/README.md)) on 1,024 problems in",
        "32 steps and is scored on 250 held-out problems, 8 samples each. *gap*: the right path is never in the",
        "student's rollouts. *slips*: it is, now and then. OPD: another model teaches; OPSD: the student's own step-0",
        "weights that are shown the reference solution. Intervals are 95 %, over seeds and problems; differences are",
        "paired by both.",
        "",
        "## One round, full fine-tuning",
        "",
        *tables.score_table(groups, "main", MAIN_NAMES),
        "",
        "## Controls",
        "",
        *(f"- `{name}`: {VARIANTS[name].summary}" for name in CONTROL_NAMES),
        "",
        *tables.score_table(groups, "controls", CONTROL_NAMES),
        "",
        "## Four rounds on the same problems",
        "",
        *plot("rounds"),
        *tables.score_table(groups, "rounds", MAIN_NAMES),
        "",
        "## LoRA",
        "",
        *plot("lora"),
        *tables.score_table(groups, "lora", MAIN_NAMES),
        "",
        "## What the diagnosis says of TRD's first round",
        "",
        *tables.diagnosis_table(groups),
        "",
        "## What it costs",
        "",
        *tables.cost_table(groups),
        "",
        "## How the learning rate was chosen",
        "",
        "Every variant in every setting at the same rates, one seed that no table above uses, scored on 250 validation",
        "problems; the best is taken (bold).",
        "",
        *tables.learning_rate_table(groups),
        "",
        "## Machine",
        "",
        *(f"- {machine}" for machine in sorted({row["machine"] for row in rows})),
    ]


def answer(groups: Groups) -> list[str]:
    """One line a setting: does TRD win, tie or lose against the best baseline there?"""
    lines = []
    for teaching, student in SETTINGS:
        best = best_baseline(groups, "main", teaching, student)
        rows = groups.get(("main", teaching, student, "trd"))
        if best is None or rows is None:
            continue
        gain = difference(avg_at_k(rows), avg_at_k(groups["main", teaching, student, best]))
        verdict = "wins" if gain.low > 0 else "loses" if gain.high < 0 else "ties"
        lines.append(
            f"- {setting_name(teaching, student)}: TRD **{verdict}** against the best baseline, `{best}`: "
            f"{gain} points of avg@8."
        )
    return lines or [tables.MISSING]
