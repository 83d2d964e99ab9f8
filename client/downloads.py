"""A checkpoint's files on their way to the disk. Knows ranges and digests; does no requests of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx

from client.datasets import OnBytes
from client.errors import DownloadError
from contract.views.checkpoints import CheckpointFileView, ManifestView

MAX_WRONG_DIGESTS = 2
"""A wrong digest once may be the rest of an earlier, broken download; then the file is fetched anew."""


@dataclass(frozen=True)
class Download:
    """What is on the disk now."""

    folder: Path
    step: int
    files: Sequence[Path]
    num_bytes: int


@contextmanager
def on_disk() -> Iterator[None]:
    """Raise `DownloadError` where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise DownloadError(f"{error.filename or 'the file'} cannot be written: {error.strerror or error}") from error


def wanted_files(
    manifest: ManifestView, target: Path, folder: str | None, on_bytes: OnBytes | None
) -> list[PartialFile]:
    """The files to bring to `target`, of `folder` alone (and then without its name) where one is given.

    Raises `DownloadError`.
    """
    prefix = f"{folder.strip('/')}/" if folder is not None else ""
    chosen = [file for file in manifest.files if file.name.startswith(prefix)]
    if not chosen:
        folders = sorted({file.name.partition("/")[0] for file in manifest.files if "/" in file.name})
        raise DownloadError(
            f"checkpoint {manifest.step} of {manifest.job_id} has no folder {folder}",
            hint=f"there are: {', '.join(folders) or 'no folders'}",
        )
    largest_first = sorted(chosen, key=lambda file: -file.num_bytes)
    return [PartialFile(file, target / _safe(file.name.removeprefix(prefix)), on_bytes) for file in largest_first]


def _safe(name: str) -> PurePosixPath:
    """A name of the manifest as a path below the target; raises `DownloadError` for one that leads elsewhere."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in path.parts[0]:
        raise DownloadError(f"the manifest names a file {name!r}, which would lie outside of the folder")
    return path


class PartialFile:
    """One file: complete under its own name, or the part that is here under a name with its digest."""

    def __init__(self, file: CheckpointFileView, path: Path, on_bytes: OnBytes | None) -> None:
        self.path = path
        self.url = file.url
        self.size = file.num_bytes
        self._name = file.name
        self._sha256 = file.sha256
        self._on_bytes = on_bytes
        self._num_wrong = 0
        self._num_told = 0
        self._part = path.with_name(f"{path.name}.{file.sha256[:12]}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tell(self.num_bytes)

    @property
    def num_bytes(self) -> int:
        """Bytes that are here."""
        path = self._part if self._part.exists() else self.path
        return min(path.stat().st_size, self.size) if path.exists() else 0

    def headers(self) -> dict[str, str]:
        """Ask for what is missing, of this very version, as it is stored."""
        headers = {"accept-encoding": "identity"}
        num_bytes = self._part.stat().st_size if self._part.exists() else 0
        if num_bytes > 0:
            headers |= {"range": f"bytes={num_bytes}-", "if-range": f'"{self._sha256}"'}
        return headers

    def is_complete(self) -> bool:
        """True where the file is here and is what the manifest says; gives it its name. Raises `DownloadError`."""
        if not self._part.exists():
            if self.path.is_file() and self.path.stat().st_size == self.size:
                return self._digest(self.path) == self._sha256  # else it is another file, and replaced
            return self.size == 0 and self._create_empty()
        if self._part.stat().st_size < self.size:
            return False
        if self._part.stat().st_size == self.size and self._digest(self._part) == self._sha256:
            self._part.replace(self.path)
            return True
        self._start_anew()
        return False

    @contextmanager
    def receiving(self, response: httpx.Response) -> Iterator[Callable[[bytes], None]]:
        """Takes the pieces of an answer to a request with `headers`; they are on the disk at the end."""
        is_rest = response.status_code == 206
        if not is_rest:
            self._tell(0)
        with self._part.open("ab" if is_rest else "wb") as file:

            def write(piece: bytes) -> None:
                file.write(piece)
                self._tell(file.tell())

            try:
                yield write
            finally:
                file.flush()
                os.fsync(file.fileno())

    def _create_empty(self) -> bool:
        self.path.write_bytes(b"")
        return True

    def _start_anew(self) -> None:
        self._num_wrong += 1
        self._tell(0)
        self._part.unlink()
        if self._num_wrong >= MAX_WRONG_DIGESTS:
            raise DownloadError(
                f"{self._name}: its sha256 is not the manifest's {self._sha256}, twice",
                hint="something between here and the service, or its storage, changes files",
            )

    def _digest(self, path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _tell(self, num_bytes: int) -> None:
        """Say how many bytes are here, as the difference to what was said before."""
        if self._on_bytes is not None and num_bytes != self._num_told:
            self._on_bytes(num_bytes - self._num_told)
        self._num_told = num_bytes
