"""The problems of a run: loaded, checked row by row, fingerprinted and split.

Whole data sets are refused rather than rows dropped silently: a broken row is an error that names its number and field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trd_data.check import ReferenceSample
from trd_data.data_notices import DataNotices
from trd_data.errors import RowError
from trd_data.notices import Notice
from trd_data.problems import Problem, fingerprint
from trd_data.readers import RawRow
from trd_data.rows import RowReader
from trd_data.shapes.choose import require_known_fields
from trd_engine.config import DataSource
from trd_engine.data.gym_entries import entry_errors
from trd_engine.data.sources import read_rows
from trd_engine.runtime.errors import DataError

_MAX_LISTED = 20
"""Row errors in one message; the others are counted."""
_LONG_TEXT = 1000
"""Characters from which on equal texts share their memory."""


@dataclass(frozen=True)
class LoadedData:
    """Problems in order, and their fingerprint."""

    problems: list[Problem]
    fingerprint: str
    """See `trd_data.problems.fingerprint`."""
    notices: tuple[Notice, ...] = ()
    """What is odd about the rows; see docs/data.md."""
    references: tuple[Mapping[str, Any], ...] = ()
    """A sample for `trd_engine.tasks.references`."""


def load_problems(
    source: DataSource | None, task: str, *, given: Iterable[Problem | Mapping[str, Any]] | None = None
) -> LoadedData:
    """Return all problems of `source`, or of `given` rows and problems.

    Raises `DataError` that lists up to twenty broken rows by number and field.
    """
    if given is not None:
        return _load_given(given, task)
    if source is None:
        raise DataError("dataset: give a path, a hub id or a generator, or pass problems")
    try:
        require_known_fields(source.columns)
    except RowError as error:
        raise DataError(f"{_describe(source)}: {error}") from error
    notices, sample = DataNotices(), ReferenceSample()
    problems, errors = _convert(read_rows(source), task, source, notices, sample)
    if not problems and not errors:
        raise DataError(f"{_describe(source)}: no rows")
    if errors:
        more = f"; and {len(errors) - _MAX_LISTED} more" if len(errors) > _MAX_LISTED else ""
        raise DataError("; ".join(errors[:_MAX_LISTED]) + more)
    return LoadedData(problems, fingerprint(problems), tuple(notices.notices()), tuple(sample.references))


def _load_given(given: Iterable[Problem | Mapping[str, Any]], task: str) -> LoadedData:
    reader = RowReader(task)
    problems: list[Problem] = []
    for number, row in enumerate(given, start=1):
        if isinstance(row, Problem):
            problems.append(row)
            continue
        try:
            problems.append(reader.reading(RawRow(number, dict(row))).required())
        except RowError as error:
            raise DataError(f"problems: row {number}: {error}") from error
    if len({problem.id for problem in problems}) < len(problems):
        raise DataError("problems: two have the same id; give each its own")
    if not problems:
        raise DataError("problems: no rows")
    return LoadedData(problems, fingerprint(problems))


DEFAULT_HOLDOUT = 0.02
MAX_DEFAULT_HELDOUT = 64
"""Problems that are held out at most if the spec names no share."""


def split_holdout(problems: Sequence[Problem], share: float | None, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Return (training, held-out) problems, each in the given order. `share` None: `DEFAULT_HOLDOUT`, bounded.

    Only a hash of its text and the seed decide a problem's side: equal texts stay together, and rows that are added
    later move no others. If `share` is not 0, at least one text is held out and one is not; raises DataError if there
    are no two different texts. Texts that differ only in spaces and case are equal.
    """
    if share == 0:
        return list(problems), []
    places = {text: _place(text, seed) for text in map(_same_text, problems)}
    if len(places) < 2:
        raise DataError("cannot hold out problems: there are no two different ones; set evaluation.holdout to 0")
    ordered = sorted(places, key=lambda text: places[text])
    wanted = sum(place < (DEFAULT_HOLDOUT if share is None else share) for place in places.values())
    if share is None:
        wanted = min(wanted, MAX_DEFAULT_HELDOUT)
    heldout_texts = set(ordered[: min(max(wanted, 1), len(ordered) - 1)])
    heldout = [problem for problem in problems if _same_text(problem) in heldout_texts]
    training = [problem for problem in problems if _same_text(problem) not in heldout_texts]
    return training, heldout


def _convert(
    rows: Iterable[RawRow], task: str, source: DataSource, notices: DataNotices, sample: ReferenceSample
) -> tuple[list[Problem], list[str]]:
    reader = RowReader(task, source.columns)
    problems: list[Problem] = []
    errors: list[str] = []
    numbers: dict[str, int] = {}
    known_texts: dict[str, str] = {}
    for row in rows:
        try:
            reading = reader.reading(row)
        except RowError as error:
            errors.append(f"row {row.number}: {error}")
            continue
        notices.add(row.number, {task: reading})
        problem = reading.required()
        sample.add(row.number, problem)
        numbers[problem.id] = row.number
        # Rows may share a long text, which a small Parquet file stores once: so does this list.
        texts = {name: getattr(problem, name) or "" for name in ("problem", "answer", "solution")}
        shared: dict[str, Any] = {
            name: known_texts.setdefault(text, text) for name, text in texts.items() if len(text) >= _LONG_TEXT
        }
        problems.append(replace(problem, **shared) if shared else problem)
    errors += [f"row {numbers[problem.id]}: {error}" for problem, error in entry_errors(problems)]
    return problems, errors


def _describe(source: DataSource) -> str:
    return source.path or source.hub or f"generator {source.generator}"


def _same_text(problem: Problem) -> str:
    return " ".join(problem.problem.split()).casefold()


def _place(text: str, seed: int) -> float:
    """Return a pseudo-random number in [0, 1) that is the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
