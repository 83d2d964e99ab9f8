"""Files arrive whole or not at all, on every kind of store."""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import TypeAdapter, ValidationError

from contract.storage import (
    CHUNK_BYTES,
    PART_BYTES,
    ContentChangedError,
    Storage,
    StoredFileMissingError,
)
from contract.storage_keys import StorageUrl, checked_storage_url
from tests.faults.harness.proxies import StoreProxy
from tests.outages import files_up_to
from tests.servers import S3Server, free_port

LARGE = os.urandom(PART_BYTES + CHUNK_BYTES + 100)
"""More than one part of a multipart upload."""


@pytest.fixture
def storage(storage_url: str) -> Storage:
    return Storage(storage_url)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"content", LARGE], ids=["empty", "small", "large"])
def test_a_file_comes_back_as_it_was_stored(storage: Storage, tmp_path: Path, content: bytes) -> None:
    source = io.BytesIO(content)
    source.seek(0, os.SEEK_END)
    storage.store(source, "a/b/c d.bin", sha256=sha256(content))
    assert storage.size("a/b/c d.bin") == len(content)
    assert storage.read("a/b/c d.bin") == content
    storage.fetch("a/b/c d.bin", tmp_path / "new" / "copy", sha256=sha256(content))
    assert (tmp_path / "new" / "copy").read_bytes() == content
    assert storage.folders("a") == ["b"]


def test_a_copied_file_has_two_keys_that_are_removed_separately(storage: Storage) -> None:
    storage.write("a/f", b"content")
    storage.write("b/f", b"older")
    for _ in range(2):
        storage.copy("a/f", "b/f")
    storage.write("a/f", b"newer")
    assert (storage.read("a/f"), storage.read("b/f")) == (b"newer", b"content")
    storage.remove_tree("a")
    assert storage.read("b/f") == b"content"
    with pytest.raises(FileNotFoundError):
        storage.copy("a/f", "c/f")
    with pytest.raises(StoredFileMissingError):
        storage.read("c/f")


def test_a_part_is_read_in_chunks(storage: Storage) -> None:
    content = LARGE[: 2 * CHUNK_BYTES + 100]
    storage.write("f", content)
    pieces = list(storage.read_range("f", 50, len(content) - 10))
    assert b"".join(pieces) == content[50:-10]
    assert max(map(len, pieces)) == CHUNK_BYTES
    assert list(storage.read_range("f", 5, 5)) == []


def test_an_open_file_is_read_by_lines_and_from_any_place(storage: Storage) -> None:
    storage.write("f", b"one\ntwo\nthree")
    with storage.open("f") as stream:
        assert list(stream) == [b"one\n", b"two\n", b"three"]
        assert stream.seek(-5, os.SEEK_END) == 8
        assert (stream.read(), stream.read(), stream.tell()) == (b"three", b"", 13)
        assert stream.seek(4) == 4
        assert stream.readline() == b"two\n"


def test_a_missing_or_short_file_is_reported(storage: Storage, tmp_path: Path) -> None:
    for read in (storage.size, storage.read, storage.open, lambda key: list(storage.read_range(key, 0, 1))):
        with pytest.raises(StoredFileMissingError, match="not in the storage: 'a/none'"):
            read("a/none")
    storage.write("f", b"abc")
    with pytest.raises(StoredFileMissingError, match="ends 2 bytes early"):
        list(storage.read_range("f", 0, 5))
    with pytest.raises(OSError, match="f"):
        list(storage.read_range("f", 5, 6))
    with pytest.raises(StoredFileMissingError):
        storage.fetch("none", tmp_path / "copy", sha256=sha256(b""))


@pytest.mark.parametrize("content", [b"content", LARGE], ids=["small", "large"])
def test_a_file_that_is_not_what_is_recorded_is_neither_stored_nor_handed_out(
    storage: Storage, tmp_path: Path, content: bytes
) -> None:
    storage.write("a/f", b"old")
    with pytest.raises(ContentChangedError, match=r"a/f: its sha256 is .*, and should be 0000"):
        storage.store(io.BytesIO(content), "a/f", sha256="0" * 64)
    assert storage.read("a/f") == b"old"
    with pytest.raises(ContentChangedError, match="a/f"):
        storage.fetch("a/f", tmp_path / "copy", sha256="0" * 64)
    with pytest.raises(ContentChangedError):
        storage.store(io.BytesIO(content), "b/f", sha256="0" * 64)
    with pytest.raises(StoredFileMissingError):
        storage.read("b/f")


@pytest.mark.parametrize("kind", ["flip", "short"])
def test_what_is_damaged_on_its_way_is_read_once_more(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    Storage(s3_url).write("f", b"content")
    proxy = StoreProxy(s3_server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    storage = Storage(s3_url)
    target, digest = tmp_path / "copy", sha256(b"content")
    proxy.fail(kind, method="GET", path="/f", count=1)
    storage.fetch("f", target, sha256=digest)
    assert target.read_bytes() == b"content"
    proxy.fail(kind, method="GET", path="/f", count=1)
    assert storage.read("f", sha256=digest) == b"content"
    proxy.fail(kind, method="GET", path="/f", count=2)
    with pytest.raises((ContentChangedError, StoredFileMissingError)):
        storage.fetch("f", target, sha256=digest)
    proxy.stop()


class Breaking(io.BytesIO):
    """A file whose disk fails after its first part, and what a reader sees at that moment."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(LARGE)
        self.storage = storage
        self.seen: bytes | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= PART_BYTES:
            with ThreadPoolExecutor() as reader:
                self.seen = reader.submit(self.storage.read, "a/f").result()
            raise OSError("the disk failed")
        return super().read(size)


def test_a_write_that_breaks_shows_nothing_and_leaves_nothing(
    storage: Storage, storage_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage.write("a/f", b"old")
    source = Breaking(storage)
    with pytest.raises(OSError, match="the disk failed"):
        storage.store(source, "a/f")
    assert source.seen == storage.read("a/f") == b"old"
    if storage_url.startswith("file:"):
        assert [path.name for path in (tmp_path / "storage" / "a").iterdir()] == ["f"]
    if storage_url.startswith("s3:"):
        server: S3Server = request.getfixturevalue("s3_server")
        assert "<Upload>" not in server.request("GET", f"/{storage_url.split('/')[2]}?uploads")


def test_a_full_disk_keeps_its_errno_and_the_old_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    storage.write("a/f", b"old")
    with files_up_to(1000), pytest.raises(OSError, match="File too large"):
        storage.write("a/f", b"x" * 2000)
    assert [path.read_bytes() for path in (tmp_path / "storage").rglob("*") if path.is_file()] == [b"old"]


def test_a_file_or_a_folder_is_removed_and_nothing_else(storage: Storage) -> None:
    for key in ("a/b/1", "a/b/2", "a/c", "ab/1", "d"):
        storage.write(key, b"x")
    for _ in range(2):
        storage.remove_tree("a/b")
        storage.give_up("d")
    assert storage.read("a/c") == storage.read("ab/1") == b"x"
    assert (storage.folders("a"), storage.folders("none")) == ([], [])
    for key in ("a/b/1", "a/b/2", "d"):
        with pytest.raises(StoredFileMissingError):
            storage.read(key)


def test_two_of_one_url_see_the_same_files(storage_url: str) -> None:
    Storage(storage_url).write("f", b"x")
    Storage(storage_url).check()
    assert Storage(storage_url).read("f") == b"x"


def test_a_check_leaves_no_file(tmp_path: Path) -> None:
    Storage(f"file://{tmp_path}").check()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_presigned_url_needs_no_credentials(storage: Storage, storage_url: str) -> None:
    storage.write("a/f.bin", b"0123456789")
    url = storage.presigned_url("a/f.bin")
    if not storage_url.startswith("s3:"):
        assert url is None
        return
    assert url is not None
    assert "a-secret" not in url
    answer = httpx.get(url, headers={"range": "bytes=7-"}, trust_env=False)
    assert (answer.status_code, answer.content) == (206, b"789")


@pytest.fixture
def broken_s3(s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Storage]:
    """Storages without a bucket, and without a server."""
    no_bucket = Storage("s3://no-such-bucket")
    no_bucket._store  # noqa: B018 - opened with this endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    return {"the bucket does not exist": no_bucket, "error sending request": Storage(s3_url)}


def test_a_store_that_fails_is_an_os_error_without_addresses(broken_s3: dict[str, Storage]) -> None:
    for reason, storage in broken_s3.items():
        for use in (storage.check, lambda s=storage: s.read("f"), lambda s=storage: s.store(io.BytesIO(b"x"), "f")):
            with pytest.raises(OSError, match=reason) as caught:
                use()
            assert not isinstance(caught.value, FileNotFoundError)
            assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environment", "message"),
    [
        ("ftp://host/x", {}, "there is no store of the kind ftp://; give a folder, file:///folder"),
        ("s3://", {}, "not a bucket and a prefix"),
        ("s3://Bucket_1/x", {}, "not a bucket and a prefix"),
        ("s3://key:secret@bucket", {}, "put them into AWS_ACCESS_KEY_ID"),
        ("file://", {}, "names no folder; give a folder"),
        ("s3://bucket", {"AWS_REGION": ""}, "AWS_REGION is empty"),
        ("s3://bucket", {"AWS_TIMEOUT": "30"}, "AWS_TIMEOUT = 30: this is not a duration; write it like 30s"),
        ("s3://bucket", {"AWS_ALLOW_HTTP": "maybe"}, "AWS_ALLOW_HTTP = maybe: write true or false"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "minio:9000"}, "AWS_ENDPOINT_URL = minio:9000: this is not a URL"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://minio:9000"}, "set AWS_ALLOW_HTTP=true"),
    ],
)
def test_a_wrong_url_says_what_to_write(
    url: str, environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=message) as caught:
        TypeAdapter(StorageUrl).validate_python(url)
    assert "secret" not in str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_TIMEOUT", text) for text in ("500ms", "30 seconds", "1min", "1h 30m", "0.5s", "1day")]
    + [("AWS_ALLOW_HTTP", text) for text in ("y", "N", "on", "False")],
)
def test_variables_are_taken_in_every_form_that_the_store_reads(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(variable, "any")
    monkeypatch.setenv(name, value)
    Storage(checked_storage_url("s3://bucket"))


@pytest.mark.parametrize("url", ["/a/b", "data/storage", "file:///a b", "memory:///", "s3://bucket", "s3://b-1/a/b/"])
def test_a_good_url_is_taken_as_it_is(url: str) -> None:
    assert checked_storage_url(url) == url
