"""A checkpoint as a tar, made while it is sent: nothing is buffered, and its length is known beforehand."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contract.storage import Storage
from contract.tables import CheckpointFile

BLOCK = tarfile.BLOCKSIZE
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Archive:
    """Files under one folder, with a list of their digests that ``sha256sum -c`` reads."""

    folder: str
    files: Sequence[CheckpointFile]
    changed_at: int
    """Seconds since the epoch, for every file."""

    @property
    def num_bytes(self) -> int:
        """Length of the whole tar."""
        members = [(file.name, file.num_bytes) for file in self.files] + [(SUMS, len(self._sums()))]
        return sum(len(self._header(*member)) + _padded(member[1]) for member in members) + 2 * BLOCK

    def stream(self, storage: Storage) -> Iterator[bytes]:
        """Yield the archive, piece by piece."""
        for file in self.files:
            yield self._header(file.name, file.num_bytes)
            yield from storage.read_range(file.storage_key, 0, file.num_bytes)
            yield b"\0" * (_padded(file.num_bytes) - file.num_bytes)
        sums = self._sums()
        yield self._header(SUMS, len(sums)) + sums.ljust(_padded(len(sums)), b"\0")
        yield b"\0" * (2 * BLOCK)

    def _sums(self) -> bytes:
        return "".join(f"{file.sha256}  {file.name}\n" for file in self.files).encode()

    def _header(self, name: str, num_bytes: int) -> bytes:
        info = tarfile.TarInfo(f"{self.folder}/{name}")
        info.size = num_bytes
        info.mtime = self.changed_at
        info.mode = 0o644
        return info.tobuf(tarfile.PAX_FORMAT)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK) * BLOCK
