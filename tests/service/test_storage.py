from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from service.storage import CHUNK_BYTES, Storage, StoredFileMissingError


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/files")


def put(storage: Storage, key: str, content: bytes) -> None:
    with storage.staged() as staged:
        staged.write(content)
        staged.keep(key)


def test_a_kept_file_has_its_place_and_nothing_is_staged(storage: Storage, tmp_path: Path) -> None:
    put(storage, "a/b/c.bin", b"content")
    assert (tmp_path / "files" / "a" / "b" / "c.bin").read_bytes() == b"content"
    assert list((tmp_path / "files" / "staging").iterdir()) == []


def test_a_file_that_is_not_kept_vanishes(storage: Storage, tmp_path: Path) -> None:
    with storage.staged() as staged:
        staged.write(b"content")
    assert list((tmp_path / "files" / "staging").iterdir()) == []


def test_a_part_is_read_in_chunks(storage: Storage) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 100)
    put(storage, "f", content)
    pieces = list(storage.read("f", 50, len(content) - 10))
    assert b"".join(pieces) == content[50:-10]
    assert max(map(len, pieces)) == CHUNK_BYTES
    assert list(storage.read("f", 5, 5)) == []


def test_a_file_that_is_gone_or_too_short_is_told(storage: Storage) -> None:
    with pytest.raises(StoredFileMissingError):
        storage.open("none")
    put(storage, "f", b"abc")
    with pytest.raises(StoredFileMissingError, match="ends 2 bytes early"):
        list(storage.read("f", 0, 5))


def test_removing_what_is_not_there_is_nothing(storage: Storage) -> None:
    put(storage, "a/b", b"x")
    for _ in range(2):
        storage.remove("a/b")
        storage.remove_tree("a")
    with pytest.raises(StoredFileMissingError):
        storage.open("a/b")


def test_uploads_of_a_process_that_died_are_cleared_and_running_ones_stay(storage: Storage, tmp_path: Path) -> None:
    storage.remove_stale_uploads()
    storage.check()
    folder = tmp_path / "files" / "staging"
    (folder / "old").write_bytes(b"x")
    (folder / "young").write_bytes(b"x")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(folder / "old", (two_days_ago, two_days_ago))
    storage.remove_stale_uploads()
    assert [path.name for path in folder.iterdir()] == ["young"]
