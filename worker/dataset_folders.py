"""Makes a dataset folder of the server safe to load: a folder of links to its data files, and nothing else.

The library that loads such a folder follows what the folder's own files say: a README.md or state.json may name any
file of the machine, ``file:///`` and ``http://`` addresses. So the data files are listed here, each must lie within the
roots that the operator allows once its links are resolved, and of the files that name others only checked parts are
kept. Scripts are never linked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from worker.failures import JobFailedError

MAX_FILES = 10_000
MAX_METADATA_BYTES = 2**20
_DATA_FILE = re.compile(r"\.(jsonl|json|ndjson|csv|tsv|parquet|arrow)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE)
_METADATA = ("state.json", "dataset_info.json", "dataset_dict.json")
"""Files that `save_to_disk` of the library writes beside the data."""
_OPTIONS = ("sep", "delimiter", "field")
"""Options of a configuration in README.md that are kept if they are text."""


def stage_path(path: str, roots: Sequence[Path], target: Path) -> str:
    """Return the path of a file or folder for the engine: a file's own, for a folder that of links, made in `target`.

    Raises `JobFailedError` if something lies outside `roots`, and OSError.
    """
    given = Path(path)
    source = _allowed(given, roots)
    if source.is_file():
        return str(source)
    if not source.is_dir():
        raise JobFailedError("dataset_invalid", f"dataset.path = {path}: there is no such file or folder")
    target.mkdir(parents=True)
    for number, file in enumerate(_files(source), start=1):
        if number > MAX_FILES:
            raise JobFailedError("dataset_invalid", f"dataset.path = {path}: it has more than {MAX_FILES} data files")
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.name in _METADATA:
            place.write_text(json.dumps(_checked_metadata(file, _allowed(file, roots))), encoding="utf-8")
        else:
            place.symlink_to(_allowed(file, roots))
    configs = _configurations(source / "README.md", roots)
    if configs:
        (target / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
    return str(target)


def _allowed(path: Path, roots: Sequence[Path]) -> Path:
    """Return the path without links; raise unless it lies in a root."""
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise JobFailedError("dataset_invalid", f"dataset.path: {path} cannot be read: {error}") from error
    is_inside = path.is_absolute() and any(resolved.is_relative_to(root.resolve()) for root in roots)
    if not is_inside or not (resolved.is_file() or resolved.is_dir()):
        raise JobFailedError(
            "dataset_invalid",
            f"dataset.path: {path} is not a file within the folders that this worker's TRD_DATASET_ROOTS allows; "
            "upload the rows, or have the operator allow the folder",
        )
    return resolved


def _files(folder: Path) -> Iterator[Path]:
    """Yield data files and known metadata, in order. Hidden folders, and links to folders, are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name in _METADATA or (_DATA_FILE.search(name) and not name.startswith(".")):
                yield Path(place) / name


def _checked_metadata(shown: Path, file: Path) -> Any:
    """Return the content of a file of `save_to_disk`, which may only name files beside it."""
    try:
        document = json.loads(_beginning(file))
    except (ValueError, RecursionError) as error:
        raise JobFailedError("dataset_invalid", f"{shown}: not readable: {error}") from error
    if shown.name == "dataset_info.json":
        return document
    if not isinstance(document, dict):
        raise JobFailedError("dataset_invalid", f"{shown}: must be an object")
    named: list[Any] = list(document.get("splits") or [])
    for listed in ("_data_files", "_indices_data_files", "_indices_files"):
        named += [item.get("filename") if isinstance(item, dict) else item for item in document.get(listed) or []]
    for name in named:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise JobFailedError("dataset_invalid", f"{shown}: it names {name!r}, which is not a file beside it")
    return document


def _configurations(readme: Path, roots: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the configurations in a README.md, whose patterns may only name files below the folder."""
    if not readme.exists():
        return []
    head = re.match(r"---[ \t]*\r?\n(.*?)\n---", _beginning(_allowed(readme, roots)), re.DOTALL)
    try:
        document = yaml.safe_load(head.group(1)) if head else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobFailedError("dataset_invalid", f"{readme}: its YAML is not readable: {error}"[:500]) from error
    configs = document.get("configs") if isinstance(document, dict) else None
    return [_configuration(readme, config) for config in configs] if isinstance(configs, list) else []


def _configuration(readme: Path, config: Any) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise JobFailedError("dataset_invalid", f"{readme}: configs must be a list of objects")
    kept: dict[str, Any] = {"config_name": str(config.get("config_name", "default"))[:100]}
    if config.get("default") is True:
        kept["default"] = True
    kept |= {name: config[name] for name in _OPTIONS if isinstance(config.get(name), str)}
    if "data_dir" in config:
        kept["data_dir"] = _pattern(readme, config["data_dir"])
    files = config.get("data_files")
    if isinstance(files, list) and all(isinstance(item, dict) for item in files):
        kept["data_files"] = [
            {"split": str(item.get("split", "train"))[:100], "path": _patterns(readme, item.get("path"))}
            for item in files
        ]
    elif files is not None:
        kept["data_files"] = _patterns(readme, files)
    return kept


def _patterns(readme: Path, patterns: Any) -> str | list[str]:
    if isinstance(patterns, list):
        return [_pattern(readme, pattern) for pattern in patterns]
    return _pattern(readme, patterns)


def _pattern(readme: Path, pattern: Any) -> str:
    is_relative = isinstance(pattern, str) and not pattern.startswith(("/", "~"))
    if not is_relative or re.search(r"(^|/)\.\.(/|$)|:|\\", pattern):
        raise JobFailedError(
            "dataset_invalid", f"{readme}: data_files names {str(pattern)[:200]!r}; only files of the folder are read"
        )
    return str(pattern)


def _beginning(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(MAX_METADATA_BYTES).decode("utf-8", "replace")
