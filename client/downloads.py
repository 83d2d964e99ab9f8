"""A checkpoint's files while they are downloaded: byte ranges, digests and names. Sends no requests."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from client.call import Call, is_worth_repeating, pause_seconds
from client.datasets import OnBytes
from client.errors import DownloadError, TrdError
from contract.views import View
from contract.views.checkpoints import CheckpointFileView, ManifestView

LATEST = "latest"
NUM_PARALLEL = 4
MAX_FAILURES = 8
"""Failures in a row, without a byte between them, after which the download of a file fails."""
MAX_WRONG_DIGESTS = 2
"""The first wrong digest may come from the part of an earlier download: the file is then downloaded again."""
_LOADED = re.compile(
    r".*\.(safetensors|safetensors\.index\.json|jinja|model|tiktoken)|((adapter|generation)_)?config\.json|tokenizer\w*\.json"
    r"|vocab\.(json|txt)|merges\.txt|added_tokens\.json|special_tokens_map\.json|trd_prompts\.json"
)
"""Names of the files that a model's loader reads if they are there."""


@dataclass(frozen=True)
class Download:
    """The downloaded files."""

    folder: Path
    step: int
    files: Sequence[Path]
    num_bytes: int


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn errors of the disk into `DownloadError`."""
    try:
        yield
    except OSError as error:
        raise DownloadError(f"{error.filename or 'the file'} cannot be written: {error.strerror or error}") from error


def wanted_files(
    manifest: ManifestView, target: Path, folder: str | None, on_bytes: OnBytes | None
) -> list[PartialFile]:
    """Return the files to download to `target`, the largest first; with `folder`, only its files, without its name.

    Raises `DownloadError`, also if a loader would read other files beside them, and so mix two checkpoints.
    """
    prefix = f"{folder.strip('/')}/" if folder is not None else ""
    chosen = [file for file in manifest.files if file.name.startswith(prefix)]
    if not chosen:
        folders = sorted({file.name.partition("/")[0] for file in manifest.files if "/" in file.name})
        raise DownloadError(
            f"checkpoint {manifest.step} of {manifest.job_id} has no folder {folder}",
            hint=f"its folders: {', '.join(folders) or 'no folders'}",
        )
    largest_first = sorted(chosen, key=lambda file: -file.num_bytes)
    wanted = {target / _safe(file.name.removeprefix(prefix)): file for file in largest_first}
    parents = {path.parent for path in wanted if path.parent.is_dir()}
    there = sorted(path for parent in parents for path in parent.iterdir() if _LOADED.fullmatch(path.name))
    if others := [str(path.relative_to(target)) for path in there if path not in wanted]:
        raise DownloadError(
            f"{target} has files of another model than checkpoint {manifest.step} of {manifest.job_id}: "
            f"{', '.join(others[:3])}{f' and {len(others) - 3} more' if len(others) > 3 else ''}",
            hint="download into another folder, or move those files elsewhere first",
        )
    return [PartialFile(file, path, on_bytes) for path, file in wanted.items()]


def name_files(files: Sequence[PartialFile]) -> None:
    """Give the complete files their names, all at once: until then the folder holds what it held before."""
    for file in files:
        file.take_name()


def _safe(name: str) -> PurePosixPath:
    """Return a name of the manifest as a path below the target; raises `DownloadError` if it leads elsewhere."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in path.parts[0]:
        raise DownloadError(f"the manifest names a file {name!r}, which would be outside the target folder")
    return path


class PartialFile:
    """One file: complete under its name, or partial under a name that contains its digest."""

    def __init__(self, file: CheckpointFileView, path: Path, on_bytes: OnBytes | None) -> None:
        self.path = path
        self._url = file.url
        self.size = file.num_bytes
        self._name = file.name
        self._sha256 = file.sha256
        self._on_bytes = on_bytes
        self._num_wrong = 0
        self._num_reported = 0
        self._part = path.with_name(f"{path.name}.{file.sha256[:12]}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._report(self.num_bytes)

    @property
    def num_bytes(self) -> int:
        """Number of bytes on the disk."""
        path = self._part if self._part.exists() else self.path
        return min(path.stat().st_size, self.size) if path.exists() else 0

    def call(self) -> Call[Any]:
        """Return the request for the missing bytes of this version, uncompressed."""
        headers = {"accept-encoding": "identity"}
        num_bytes = self._part.stat().st_size if self._part.exists() else 0
        if num_bytes > 0:
            headers |= {"range": f"bytes={num_bytes}-", "if-range": f'"{self._sha256}"'}
        return Call("GET", self._url, View, headers=headers)

    def is_complete(self) -> bool:
        """Return whether the file is here with the right digest. Raises `DownloadError`."""
        if not self._part.exists():
            if self.path.is_file() and self.path.stat().st_size == self.size:
                return self._digest(self.path) == self._sha256  # if not, it is another file and will be replaced
            if self.size > 0:
                return False
            self._part.touch()
        if self._part.stat().st_size < self.size:
            return False
        if self._part.stat().st_size == self.size and self._digest(self._part) == self._sha256:
            return True
        self._num_wrong += 1
        self._report(0)
        self._part.unlink()
        if self._num_wrong >= MAX_WRONG_DIGESTS:
            raise DownloadError(
                f"{self._name}: its sha256 is not the manifest's {self._sha256}, in two downloads",
                hint="a proxy or the service's storage changes the file",
            )
        return False

    def take_name(self) -> None:
        """Give the complete file its name, and remove the parts of other versions: nobody will continue them."""
        if self._part.exists():
            self._part.replace(self.path)
        for part in self.path.parent.glob(f"{glob.escape(self.path.name)}.{'[0-9a-f]' * 12}.part"):
            part.unlink()

    @contextmanager
    def receiving(self, response: httpx.Response) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that writes the pieces of the response to `call`; they are on the disk at the end."""
        is_rest = response.status_code == 206
        if not is_rest:
            self._report(0)
        with self._part.open("ab" if is_rest else "wb") as file:

            def write(piece: bytes) -> None:
                file.write(piece)
                self._report(file.tell())

            try:
                yield write
            finally:
                file.flush()
                os.fsync(file.fileno())

    def _digest(self, path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _report(self, num_bytes: int) -> None:
        """Report the change in the number of bytes on the disk."""
        if self._on_bytes is not None and num_bytes != self._num_reported:
            self._on_bytes(num_bytes - self._num_reported)
        self._num_reported = num_bytes


class Failures:
    """Counts the failures of one file in a row, without a byte between them."""

    def __init__(self, file: PartialFile) -> None:
        self._file = file
        self._num = 0
        self._num_bytes_before = file.num_bytes

    def pause(self, error: TrdError) -> float:
        """Return the seconds to wait before the next request; raises `error` if another request would not help."""
        self._num = 1 if self._file.num_bytes > self._num_bytes_before else self._num + 1
        self._num_bytes_before = self._file.num_bytes
        if self._num > MAX_FAILURES or not is_worth_repeating(error, is_repeatable=True):
            raise error
        return pause_seconds(self._num, error)
