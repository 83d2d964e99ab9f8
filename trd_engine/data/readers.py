"""Raw rows from a file, a folder, the hub or a generator.

Owns decoding only: what a column means is not known here. A row's number is what its error message
names: the line of a JSONL file, else the row's place, counted from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from trd_engine.config import DataSource
from trd_engine.data.generated import generate_rows
from trd_engine.runtime.errors import DataError
from trd_engine.runtime.plain_json import allow_long_integers

_PARQUET_MAGIC = b"PAR1"
_FORMATS = "; of files, JSON Lines, JSON (named .json) and Parquet are read, and nothing compressed around them"


@dataclass(frozen=True)
class RawRow:
    """One row as it was read, or why it could not be."""

    number: int
    values: dict[str, Any]
    error: str | None = None


def read_rows(source: DataSource) -> list[RawRow]:
    """All rows of `source`, the unreadable ones with their error; raises DataError if there is no such source."""
    allow_long_integers()
    if source.generator is not None:
        return _number(generate_rows(source.generator, source.size, source.seed))
    if source.hub is not None:
        return _number(_load_hub(source.hub, source))
    assert source.path is not None
    return read_path(Path(source.path), source.split, source.config)


def read_path(path: Path, split: str, config: str | None = None) -> list[RawRow]:
    """The rows of a JSONL, JSON or Parquet file, or of one split of a dataset folder's configuration."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return _number(_load_folder(path, split, config))
    if config is not None:
        raise _no_configurations(path, config)
    if path.suffix == ".parquet" or _starts_with(path, _PARQUET_MAGIC):
        return _number(_read_parquet(path))
    if path.suffix == ".json":
        return _read_json_array(path)
    return _name_formats(list(_read_lines(path)))


def _name_formats(rows: list[RawRow]) -> list[RawRow]:
    """The same rows; where the first is none, the file may be of another format, and its error says what is read."""
    if rows and rows[0].error is not None:
        rows[0] = replace(rows[0], error=rows[0].error + _FORMATS)
    return rows


def _number(rows: Iterable[dict[str, Any]]) -> list[RawRow]:
    return [RawRow(number, values) for number, values in enumerate(rows, start=1)]


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _read_lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parse_line(number, line)


def _parse_line(number: int, line: bytes) -> RawRow:
    try:
        values = json.loads(line)
    except UnicodeDecodeError as error:
        return RawRow(number, {}, f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return RawRow(number, {}, f"not valid JSON: {error}")
    if not isinstance(values, dict):
        return RawRow(number, {}, f"must be a JSON object, not {type(values).__name__}")
    return RawRow(number, values)


def _read_json_array(path: Path) -> list[RawRow]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return list(_read_lines(path))  # JSON Lines under another name
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list):
        raise DataError(f"{path}: must be an array of objects, not {type(rows).__name__}")
    return [
        RawRow(number, row) if isinstance(row, dict) else RawRow(number, {}, "must be a JSON object")
        for number, row in enumerate(rows, start=1)
    ]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
    return rows


def _load_folder(path: Path, split: str, config: str | None) -> Iterable[dict[str, Any]]:
    """A folder written by `save_to_disk`, or one of data files as the hub has them."""
    import datasets  # type: ignore[import-untyped]

    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    if saved and config is not None:
        raise _no_configurations(path, config)
    try:
        loaded = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path), name=config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{path}{_of(config)}: not a readable dataset folder: {error}{_remedy(error)}") from error
    if isinstance(loaded, datasets.Dataset):
        return cast(Iterable[dict[str, Any]], loaded)
    if split not in loaded:
        raise DataError(f"{path}: no split {split!r}; the folder has {', '.join(map(str, loaded))}")
    return cast(Iterable[dict[str, Any]], loaded[split])


def _load_hub(name: str, source: DataSource) -> Iterable[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, name=source.config, split=source.split, revision=source.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        at = f" at revision {source.revision}" if source.revision else ""
        raise DataError(
            f"dataset {name}{at}{_of(source.config)}, split {source.split!r}: could not be loaded from the hub: "
            f"{error}{_remedy(error) or '; check the name and the network, or give a local file as path'}"
        ) from error
    return cast(Iterable[dict[str, Any]], loaded)


def _of(config: str | None) -> str:
    return f", config {config!r}" if config else ""


def _remedy(error: Exception) -> str:
    """For a configuration that is missing or not there; `datasets` lists the ones there are, by no type of its own."""
    is_about_it = str(error).startswith(("Config name is missing", "BuilderConfig"))
    return "; name one of them in the field config" if is_about_it else ""


def _no_configurations(path: Path, config: str) -> DataError:
    return DataError(f"{path}: config {config!r} is for a folder of data files, and this is none; leave config out")
