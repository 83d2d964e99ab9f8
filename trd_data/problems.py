"""`Problem`, the meaning of one row, and the fingerprint of many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trd_data.plain_json import agreed_json, plain_json


@dataclass(frozen=True)
class Problem:
    """One row of the data."""

    id: str
    """Unique within the data: the row's own id, else its number."""
    problem: str
    answer: str
    """What the task's verifier compares with. Empty for code, whose tests are in `extra`."""
    solution: str | None = None
    """The reference solution y*, which a privileged teacher sees."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else a task needs, such as tests, choices or starter code."""
    benchmark: str | None = None
    """The data set that the row names as its source, if a file holds several; each is scored separately."""


def fingerprint(problems: Iterable[Problem]) -> str:
    """Return the sha256 over the canonical JSON of all problems in order, `benchmark` excepted.

    It is the same for JSON Lines, Parquet and dataset folders with the same rows.
    """
    digest = hashlib.sha256()
    for problem in problems:
        row = {name: plain_json(value) for name, value in asdict(problem).items() if name != "benchmark"}
        row["extra"] = agreed_json(row["extra"])
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
