"""Figures with intervals from the rows, for the report and the plots.

An interval is over seeds *and* problems: both are resampled with replacement, because another run would have another
seed and another user has other problems. Paired differences resample both sides equally.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.rows import Row, read_rows

NUM_RESAMPLES = 2000
Factors = tuple[str, str, str, str]
"""(section, teaching, student, variant)."""
Scores = NDArray[np.float64]
"""[S, P]: one score per seed and problem; R resamples of both."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval of a difference says."""
        return "wins" if self.low > 0 else "loses" if self.high < 0 else "ties"

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def group(rows: Iterable[Row]) -> dict[Factors, list[Row]]:
    """Group the rows by cell of the design, ordered by seed."""
    groups: dict[Factors, list[Row]] = defaultdict(list)
    for row in rows:
        cell = row["cell"]
        groups[cell["section"], cell["teaching"], cell["student"], cell["variant"]].append(row)
    return {key: sorted(found, key=lambda row: row["cell"]["seed"]) for key, found in groups.items()}


def avg_at_k(rows: Sequence[Row], when: str = "after") -> Scores:
    """Return each problem's share of correct samples, for each seed."""
    return np.array([[count / row[when]["k"] for count in row[when]["num_correct"]] for row in rows])


def pass_at_k(rows: Sequence[Row], when: str = "after") -> Scores:
    """Return 1 for problems with a correct sample among k (unbiased, because all k are counted)."""
    return np.array([[float(count > 0) for count in row[when]["num_correct"]] for row in rows])


def estimate(scores_SP: Scores) -> Estimate:
    """Return the mean over seeds and problems."""
    return _interval(scores_SP, float(scores_SP.mean()))


def difference(scores_SP: Scores, others_SP: Scores) -> Estimate:
    """Return the mean difference, paired by seed and problem; seeds of only one side are left out."""
    num_seeds = min(len(scores_SP), len(others_SP))
    paired_SP = scores_SP[:num_seeds] - others_SP[:num_seeds]
    return _interval(paired_SP, float(paired_SP.mean()))


def _interval(scores_SP: Scores, mean: float) -> Estimate:
    seeds_RS, problems_RP = _resamples(*scores_SP.shape)
    means_R = ((seeds_RS @ scores_SP) * problems_RP).sum(axis=1)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


@cache
def _resamples(num_seeds: int, num_problems: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights [R, S] of the seeds and [R, P] of the problems in each resample's mean."""
    generator = np.random.default_rng(0)
    seeds_RS, problems_RP = np.empty((NUM_RESAMPLES, num_seeds)), np.empty((NUM_RESAMPLES, num_problems))
    for seeds_S, problems_P in zip(seeds_RS, problems_RP, strict=True):
        for weights in (seeds_S, problems_P):
            size = len(weights)
            weights[:] = np.bincount(generator.integers(size, size=size), minlength=size) / size
    return seeds_RS, problems_RP


def mean_of(rows: Sequence[Row], read: Callable[[Row], float]) -> float:
    """Return the mean over seeds of a number in the row."""
    return float(np.mean([read(row) for row in rows]))


def merge(path: Path, new_rows: Sequence[Row]) -> list[str]:
    """Replace the committed rows of the same runs in `path` by `new_rows`; return the result of `compare`."""
    old_rows = read_rows(path)
    compared = compare(old_rows, new_rows)
    merged = {row["id"]: row for row in [*old_rows, *new_rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(merged[key], ensure_ascii=False) + "\n" for key in sorted(merged)), "utf-8")
    return compared


def compare(old_rows: Sequence[Row], new_rows: Sequence[Row]) -> list[str]:
    """Return one line for each cell in both: whether the new avg@k is within the committed interval."""
    old, new = group(old_rows), group(new_rows)
    lines, num_inside = [], 0
    for key in sorted(old.keys() & new.keys()):
        committed, mean = estimate(avg_at_k(old[key])), float(avg_at_k(new[key]).mean())
        is_inside = committed.low <= mean <= committed.high
        num_inside += is_inside
        lines.append(f"{'inside ' if is_inside else 'OUTSIDE'}  {' '.join(key)}: {100 * mean:.1f}, was {committed}")
    if lines:
        lines.append(f"{num_inside} of {len(lines)} within the committed 95 % intervals")
    return lines
