"""The committed rows: new runs replace the old ones after a comparison with their intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.rows import Row, read_rows
from benchmarks.paper.summary import avg_at_k, estimate, group


def merge(path: Path, new_rows: Sequence[Row]) -> list[str]:
    """Replace the rows of the same runs in `path` by `new_rows`; return the result of `compare`."""
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
