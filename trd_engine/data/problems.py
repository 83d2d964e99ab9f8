"""The problems of a run: loaded, checked row by row, fingerprinted and split.

Owns what a row means to the engine. It refuses whole data sets rather than to drop rows silently: a
broken row is an error that names its number and field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trd_engine.config import DataSource
from trd_engine.data.entries import entry_errors
from trd_engine.data.readers import RawRow, read_rows
from trd_engine.data.shapes.choose import require_known_fields, to_problem
from trd_engine.data.shapes.fields import RowError
from trd_engine.runtime.errors import DataError
from trd_engine.runtime.plain_json import agreed_json, plain_json
from trd_engine.types import Problem

_MAX_LISTED = 20
"""Row errors shown at once; the rest are counted."""


@dataclass(frozen=True)
class LoadedData:
    """Problems in their order, and what identifies them."""

    problems: list[Problem]
    fingerprint: str
    """sha256 over the problems' canonical JSON, in order: the same however the rows are stored."""


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
    rows = read_rows(source)
    if not rows:
        raise DataError(f"{_describe(source)}: no rows")
    problems, errors = _convert(rows, task, source)
    if errors:
        more = f"; and {len(errors) - _MAX_LISTED} more" if len(errors) > _MAX_LISTED else ""
        raise DataError("; ".join(errors[:_MAX_LISTED]) + more)
    return LoadedData(problems, fingerprint(problems))


def _load_given(given: Iterable[Problem | Mapping[str, Any]], task: str) -> LoadedData:
    problems: list[Problem] = []
    for number, row in enumerate(given, start=1):
        if isinstance(row, Problem):
            problems.append(row)
            continue
        try:
            problems.append(_checked(RawRow(number, dict(row)), task, {}))
        except RowError as error:
            raise DataError(f"problems: row {number}: {error}") from error
    if len({problem.id for problem in problems}) < len(problems):
        raise DataError("problems: two have the same id; give each its own")
    if not problems:
        raise DataError("problems: no rows")
    return LoadedData(problems, fingerprint(problems))


def fingerprint(problems: Iterable[Problem]) -> str:
    """sha256 over the canonical JSON of each problem and their order."""
    return _digest({**row, "extra": agreed_json(row["extra"])} for row in map(_trained_on, problems))


def _digest(rows: Iterable[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _trained_on(problem: Problem) -> dict[str, Any]:
    """All of a problem but the name that its scores are grouped by, as plain JSON."""
    return {name: plain_json(value) for name, value in asdict(problem).items() if name != "benchmark"}


def split_holdout(problems: Sequence[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems, each in the order given.

    A problem's side hangs on a hash of its text and the seed alone: equal texts stay together, and rows
    added later move no other. If `share` > 0 at least one text is held out and one is not; raises
    DataError where there are no two different texts. Spaces and case do not make a text another.
    """
    if share <= 0:
        return list(problems), []
    places = {text: _place(text, seed) for text in map(_same_text, problems)}
    if len(places) < 2:
        raise DataError("cannot hold out problems: there are no two different ones; set evaluation.holdout to 0")
    ordered = sorted(places, key=lambda text: places[text])
    wanted = sum(place < share for place in places.values())
    heldout_texts = set(ordered[: min(max(wanted, 1), len(ordered) - 1)])
    heldout = [problem for problem in problems if _same_text(problem) in heldout_texts]
    training = [problem for problem in problems if _same_text(problem) not in heldout_texts]
    return training, heldout


def _convert(rows: list[RawRow], task: str, source: DataSource) -> tuple[list[Problem], list[str]]:
    problems: list[Problem] = []
    errors: list[str] = []
    seen: dict[str, int] = {}
    for row in rows:
        try:
            problem = _checked(row, task, source.columns)
            if problem.id in seen:
                raise RowError(f"field 'id' is {problem.id!r}, as in row {seen[problem.id]}; ids must differ")
        except RowError as error:
            errors.append(f"row {row.number}: {error}")
            continue
        seen[problem.id] = row.number
        problems.append(problem)
    errors += [f"row {seen[problem.id]}: {error}" for problem, error in entry_errors(problems)]
    return problems, errors


def _checked(row: RawRow, task: str, columns: Mapping[str, str]) -> Problem:
    if row.error is not None:
        raise RowError(row.error)
    try:
        problem = to_problem(row.values, row.number, task, columns)
    except RowError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of a type not thought of
        raise RowError(f"is not read as a problem of task {task}: {type(error).__name__}: {error}") from error
    for name in ("id", "problem", "answer", "solution"):
        _require_characters(name, getattr(problem, name) or "")
    return problem


def _require_characters(name: str, text: str) -> None:
    """JSON can spell half a surrogate pair, which no tokenizer reads and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"field {name!r} has {text[error.start]!a} at character {error.start}, half a surrogate pair; "
            "write the character whole"
        ) from None


def _describe(source: DataSource) -> str:
    return source.path or source.hub or f"generator {source.generator}"


def _same_text(problem: Problem) -> str:
    return " ".join(problem.problem.split()).casefold()


def _place(text: str, seed: int) -> float:
    """A number in [0, 1) that looks random, and is the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
