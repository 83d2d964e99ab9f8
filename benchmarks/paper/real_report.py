"""The part of ``docs/paper.md`` on the real model, made from its rows."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.machine import table
from benchmarks.paper.real.grid import LEARNING_RATES, NUM_TRAIN, SEEDS, SUMMARIES, TEACHER_SECTION, VARIANTS
from benchmarks.paper.real.tasks import CANDIDATES, SIZES
from benchmarks.paper.rows import Row
from benchmarks.paper.summary import avg_at_k, difference, estimate, mean_of, pass_at_k
from benchmarks.paper.tables import rate_scores

SERVED = "trd_served"
BASELINES = tuple(name for name in VARIANTS if name not in ("trd", SERVED))
"""Variants that TRD is compared with; the others have its teacher, or y* itself."""
MISSING = "These runs are not among the committed rows; `make paper-real` makes them."
SERVED_MISSING = "not run yet; `python -m benchmarks.paper.real --variants trd_served` makes its rows, in an hour more."
LOOKED_INTO = (
    "The first run of this grid made the student worse, and the reason was looked for in our code first. The warm-up",
    "had then shown the model bare problems only. Shown y* as well (16 problems that are not used again), such a",
    "teacher wrote the answer without the way to it: the steps were there in 31 % of its samples, against 88 % of the",
    "student's own, and the mass on starting with the answer was 0.49 against 0.08. Distilled from that, `forward_kl`",
    "at 3e-4 fell to 8.6 % on the validation problems, its answers from 25 tokens to 14. Eleven other wordings, worked",
    "examples among them, left that mass at 0.23 to 0.57. With the warm-up in all three forms the steps are there in",
    "all samples of the student, and the teacher with y* in sight is right in all, refining or not (32 problems).",
    "A y_r is y* nearly word for word then, so that on this task TRD can hardly differ from training on y* itself.",
)
"""The search for a fault; these figures come from manual runs, not from committed rows."""
Groups = dict[str, list[Row]]
"""Variant → its rows by seed."""


def real_section(rows: Sequence[Row]) -> list[str]:
    """Return the section in Markdown: the answer, the scores, what refining did, the costs and the choice of rates."""
    lines = [
        "## A real model",
        "",
        "SmolLM2-135M-Instruct teaches itself (OPSD, LoRA of rank 16 on all linear layers, fp32) on a task of",
        "`reasoning-gym`; in one variant another teacher, which is served, gives it text. As it comes it does not put",
        "its answers where a verifier looks, so it is first warmed up on",
        f"{SIZES['warm_up']} reference solutions of separate problems, each asked alone, with the reference in",
        "sight, and with an attempt and the reference in sight; what comes out of it is the student *before*, and",
        "what teaches. [The candidates](../benchmarks/paper/results/real_tasks.md) were",
        f"scored on problems that are not used again. A run distils on {NUM_TRAIN} problems in one round; scores are",
        f"of {SIZES['heldout']} held-out problems, 4 samples each. `make paper-real` makes the rows.",
        "",
        *(f"- `{name}`: {summary}" for name, summary in SUMMARIES.items()),
        "",
        *LOOKED_INTO,
        "",
    ]
    tasks = list(dict.fromkeys(row["cell"]["task"] for row in rows))
    if not tasks:
        return [*lines, MISSING, ""]
    for task in tasks:
        lines += _task_lines(task, [row for row in rows if row["cell"]["task"] == task])
    return lines


def _task_lines(task: str, rows: list[Row]) -> list[str]:
    candidate = CANDIDATES[task]
    settings = ", ".join(f"`{key}` {value}" for key, value in candidate.parameters.items())
    groups = _groups(rows, "real")
    lines = [f"### {candidate.generator} ({settings})", ""]
    if groups:
        lines += [*_answer(groups), "", *_score_table(groups), "", *_cost_table(groups), ""]
        lines += _served_lines(groups, [row for row in rows if row["cell"]["section"] == TEACHER_SECTION])
    else:
        lines += [MISSING, ""]
    choice = _rate_table(_groups(rows, "real_learning_rate"))
    return [*lines, f"avg@2 on {SIZES['validation']} validation problems by learning rate:", "", *choice, ""]


def _groups(rows: list[Row], section: str) -> Groups:
    found: Groups = {}
    for name in VARIANTS:
        of_name = [row for row in rows if row["cell"]["section"] == section and row["cell"]["variant"] == name]
        if of_name:
            found[name] = sorted(of_name, key=lambda row: (row["cell"]["seed"], row["cell"]["learning_rate"]))
    return found


def _best_baseline(groups: Groups) -> str | None:
    found = [name for name in BASELINES if name in groups]
    return max(found, key=lambda name: float(avg_at_k(groups[name]).mean())) if found else None


def _answer(groups: Groups) -> list[str]:
    best = _best_baseline(groups)
    if best is None or "trd" not in groups:
        return [MISSING]
    gain = difference(avg_at_k(groups["trd"]), avg_at_k(groups[best]))
    trained = estimate(avg_at_k(groups["trd"]))
    seeds = min(len(groups["trd"]), len(groups[best]))
    lines = [f"TRD **{gain.verdict}** against the best baseline, `{best}`: {gain} points of avg@4 over {seeds} seeds."]
    if seeds < len(SEEDS):
        lines.append(f"Only {seeds} of {len(SEEDS)} seeds have been run: the interval does not include the others.")
    before = [row for found in groups.values() for row in found if row["before"]]
    if before:
        lines.append(f"Before training avg@4 is {estimate(avg_at_k(before, 'before'))}, after TRD {trained}.")
    return lines


def _served_lines(groups: Groups, teachers: list[Row]) -> list[str]:
    """Return lines on the served teacher's training and score, and on its student compared with y* and TRD."""
    compared = [name for name in ("ce_reference", "trd") if name in groups]
    if SERVED not in groups or not teachers or not compared:
        return [f"With a served teacher (`{SERVED}`): {SERVED_MISSING}", ""]
    solved = {when: estimate(avg_at_k(teachers, when)) for when in ("before", "after")}
    written, revised = (_mean_share(groups[SERVED], key) for key in ("rollout_accuracy", "refined_accuracy"))
    gains = {name: difference(avg_at_k(groups[SERVED]), avg_at_k(groups[name])) for name in compared}
    verdicts = " and ".join(f"**{gain.verdict}** against `{name}` ({gain} points)" for name, gain in gains.items())
    return [
        f"The teacher of `{SERVED}` is the untrained model, taught by cross-entropy on {SIZES['teacher']} reference",
        "solutions of separate problems, each asked alone and with an attempt in sight. vLLM's own server answers",
        "for it with text and nothing else, so that the student is trained by cross-entropy on that text.",
        f"On the held-out problems its avg@4 is {solved['after']}, {solved['before']} before it was taught; of the",
        f"student's y_o {written} are right, of its y_r {revised}. `{SERVED}` {verdicts}, paired.",
        *_other_machine_lines(groups[SERVED], groups[compared[0]]),
        "",
    ]


def _other_machine_lines(served: Sequence[Row], others: Sequence[Row]) -> list[str]:
    """Return a note if the rows come from another machine, with a comparison of the two warmed-up students."""
    if {_processor(row) for row in served} == {_processor(row) for row in others}:
        return []
    shares, others_shares = ([row["rounds"][0]["rollout_accuracy"] for row in rows] for rows in (served, others))
    as_many = "as many" if shares == others_shares[: len(shares)] else "not as many"
    return [
        "Its rows are of another machine than the others', on which the student was warmed up anew: of its y_o",
        f"{as_many} are right as of the other rows', seed by seed. Seconds compare within one machine alone.",
    ]


def _processor(row: Row) -> str:
    """Return the machine without date and versions."""
    return str(row["machine"].split("; ")[1])


def _score_table(groups: Groups) -> list[str]:
    best = _best_baseline(groups)
    lines = []
    before = [row for found in groups.values() for row in found if row["before"]]
    if before:
        average, passed = estimate(avg_at_k(before, "before")), estimate(pass_at_k(before, "before"))
        lines.append(f"| before | | | {average} | {passed} | |")
    for name, rows in groups.items():
        versus = "(best baseline)" if name == best else ""
        if best is not None and name != best:
            versus = str(difference(avg_at_k(rows), avg_at_k(groups[best])))
        rate = rows[0]["cell"]["learning_rate"]
        scores = f"{estimate(avg_at_k(rows))} | {estimate(pass_at_k(rows))}"
        lines.append(f"| {name} | {rate:g} | {len(rows)} | {scores} | {versus} |")
    return table("| variant | rate | seeds | avg@4 | pass@4 | avg@4 less the best baseline's |", lines)


COSTS = {"rollout": "rollout s", "refining": "refining s", "training": "training s"}


def _cost_table(groups: Groups) -> list[str]:
    """Return figures of the first round's target texts, and seconds by phase; means over the seeds."""
    lines = []
    for name, rows in groups.items():
        shares = [_mean_share(rows, key) for key in ("rollout_accuracy", "refined_accuracy")]
        tokens = [
            f"{mean_of(rows, lambda row, k=key: sum(row['sampled_tokens'][k])):,.0f}" for key in ("rollout", "refined")
        ]
        seconds = [f"{mean_of(rows, lambda row, k=key: row['seconds_by_phase'].get(k, 0.0)):.0f}" for key in COSTS]
        lines.append(f"| {name} | {' | '.join([*shares, *tokens, *seconds])} |")
    head = "| variant | y_o right | y_r right | y_o tokens | y_r tokens"
    return table(f"{head} | {' | '.join(COSTS.values())} |", lines)


def _mean_share(rows: list[Row], name: str) -> str:
    if name not in rows[0]["rounds"][0]:
        return ""
    return f"{100 * mean_of(rows, lambda row: row['rounds'][0][name]):.1f} %"


def _rate_table(groups: Groups) -> list[str]:
    lines = [f"| {name} | {' | '.join(rate_scores(rows, LEARNING_RATES))} |" for name, rows in groups.items()]
    return table(f"| variant | {' | '.join(f'{rate:g}' for rate in LEARNING_RATES)} |", lines) if lines else [MISSING]
