"""Raw rows from a file, a dataset folder, the hub or a generator; files are read by `trd_data.readers`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from trd_data.data_notices import notable_columns
from trd_data.errors import DataFileError
from trd_data.readers import RawRow, number_rows
from trd_data.readers import read_rows as read_rows_of_file
from trd_engine.config import DataSource
from trd_engine.data.gym_entries import generate_rows
from trd_engine.runtime.errors import DataError


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield all rows of `source`, unreadable ones with their error; raises DataError if there is no such source."""
    if source.generator is not None:
        return number_rows(generate_rows(source.generator, source.size, source.seed))
    if source.hub is not None:
        import datasets  # type: ignore[import-untyped]

        try:
            loaded = datasets.load_dataset(source.hub, name=source.config, split=source.split, revision=source.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            at = f" at revision {source.revision}" if source.revision else ""
            raise DataError(
                f"dataset {source.hub}{at}{_of(source.config)}, split {source.split!r}: could not be loaded from the "
                f"hub: {error}{_remedy(error) or '; check the name and the network, or give a local file as path'}"
            ) from error
        return number_rows(cast(Iterable[dict[str, Any]], loaded))
    assert source.path is not None
    path = Path(source.path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return number_rows(_load_folder(path, source.split, source.config))
    if source.config is not None:
        raise _no_configurations(path, source.config)
    return _read_file(path, source.columns)


def _read_file(path: Path, columns: Mapping[str, str]) -> Iterator[RawRow]:
    try:
        with path.open("rb") as stream:
            yield from read_rows_of_file(stream, notable_columns(columns))
    except DataFileError as error:
        raise DataError(f"{path}: {error}") from error


def _load_folder(path: Path, split: str, config: str | None) -> Iterable[dict[str, Any]]:
    """Load a folder written by `save_to_disk`, or one with data files as on the hub."""
    import datasets

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


def _of(config: str | None) -> str:
    return f", config {config!r}" if config else ""


def _remedy(error: Exception) -> str:
    """Return what to do about a missing or unknown configuration, for which `datasets` has no error type."""
    is_about_it = str(error).startswith(("Config name is missing", "BuilderConfig"))
    return "; name one of them in the field config" if is_about_it else ""


def _no_configurations(path: Path, config: str) -> DataError:
    return DataError(f"{path}: config {config!r} is for a folder of data files, which this is not; leave config out")
