"""Checkpoints over connections that break: whole, byte for byte, and no byte fetched twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client import AsyncClient, Client
from client.call import store_request
from client.downloads import PartialFile, wanted_files
from client.errors import ConnectionFailedError, DownloadError, NotFoundError
from contract.database import Database
from contract.views.checkpoints import CheckpointFileView
from tests.client.breaking_proxy import BreakingProxy, breaking_proxy
from tests.client.conftest import RunningService
from tests.servers import S3Server
from tests.service.conftest import ADMIN_KEY, AUTHORIZED, write_model
from tests.service.live_server import live_server
from tests.service.records import add_checkpoint, submit

MIB = 2**20
FILES = {
    "model/model.safetensors": random.Random(0).randbytes(5 * MIB + 17),
    "model/config.json": b"{}",
    "model/empty": b"",
    "state/state.pt": random.Random(1).randbytes(300_000),
}


@pytest.fixture
def stored(service: RunningService, job_id: str) -> str:
    """A job with one checkpoint, at step 7."""
    add_checkpoint(service.database, service.storage_dir, job_id, 7, FILES)
    return job_id


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_arrives_whole(trd: Client, stored: str, tmp_path: Path) -> None:
    counted: list[int] = []
    manifest = trd.checkpoints.manifest(stored)
    done = trd.checkpoints.download(manifest, tmp_path / "all", on_bytes=counted.append)
    assert contents(tmp_path / "all") == FILES
    assert (done.step, done.num_bytes, sum(counted)) == (7, manifest.num_bytes, manifest.num_bytes)
    trd.checkpoints.download(manifest, tmp_path / "model", folder="model")
    assert set(contents(tmp_path / "model")) == {"model.safetensors", "config.json", "empty"}
    with pytest.raises(DownloadError, match="no folder adapter") as raised:
        trd.checkpoints.download(manifest, tmp_path, folder="adapter")
    assert raised.value.hint == "its folders: model, state"
    assert trd.checkpoints.list(stored)[0].step == 7


def test_a_broken_download_continues_at_its_last_byte(
    through_proxy: Client, proxy: BreakingProxy, stored: str, tmp_path: Path
) -> None:
    manifest = through_proxy.checkpoints.manifest(stored)
    before = proxy.num_answer_bytes
    proxy.cut_all()
    proxy.cut_after.extend([2 * MIB, MIB, MIB])
    counted: list[int] = []
    through_proxy.checkpoints.download(manifest, tmp_path, num_parallel=1, on_bytes=counted.append)
    assert contents(tmp_path) == FILES
    assert sum(counted) == manifest.num_bytes
    assert proxy.num_connections >= 4
    assert proxy.num_answer_bytes - before < manifest.num_bytes + MIB // 2, "little more than the files themselves"


def test_an_interrupted_download_continues_later(
    through_proxy: Client, proxy: BreakingProxy, stored: str, tmp_path: Path
) -> None:
    """As after Ctrl-C, or a killed process: what is on the disk is all that the second one knows."""
    manifest = through_proxy.checkpoints.manifest(stored, 7)

    class Enough(Exception):  # noqa: N818 - not a failure
        pass

    def stop_halfway(_num_bytes: int) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 9:
            raise Enough

    num_calls = 0
    with pytest.raises(Enough):
        through_proxy.checkpoints.download(manifest, tmp_path, folder="model", num_parallel=1, on_bytes=stop_halfway)
    (part,) = tmp_path.glob("model.safetensors.*.part")
    num_there = part.stat().st_size
    assert 0 < num_there < len(FILES["model/model.safetensors"])
    assert not (tmp_path / "model.safetensors").exists(), "a name means that the file is whole"
    before = proxy.num_answer_bytes
    through_proxy.checkpoints.download(manifest, tmp_path, folder="model")
    assert (tmp_path / "model.safetensors").read_bytes() == FILES["model/model.safetensors"]
    assert list(tmp_path.glob("*.part")) == []
    assert proxy.num_answer_bytes - before < len(FILES["model/model.safetensors"]) - num_there + 10_000
    before = proxy.num_answer_bytes
    through_proxy.checkpoints.download(manifest, tmp_path, folder="model")
    assert proxy.num_answer_bytes == before, "all of it is there"


SHARDED = {
    "model/config.json": b'{"model_type": "a"}',
    "model/chat_template.jinja": b"{{ messages }}",
    "model/model.safetensors.index.json": b"{}",
    "model/model-00001-of-00002.safetensors": random.Random(4).randbytes(2 * MIB),
    "model/model-00002-of-00002.safetensors": random.Random(5).randbytes(MIB),
}


def test_a_folder_never_mixes_two_models(trd: Client, service: RunningService, stored: str, tmp_path: Path) -> None:
    add_checkpoint(service.database, service.storage_dir, stored, 9, SHARDED)
    sharded, whole = trd.checkpoints.manifest(stored, 9), trd.checkpoints.manifest(stored, 7)
    trd.checkpoints.download(sharded, tmp_path, folder="model")
    (tmp_path / "notes.json").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(
        DownloadError, match=r"chat_template.jinja, model-00001-of-.*, model-00002-of-.* and 1"
    ) as raised:
        trd.checkpoints.download(whole, tmp_path, folder="model")
    assert "another folder" in (raised.value.hint or "")
    assert contents(tmp_path) == before
    trd.checkpoints.download(sharded, tmp_path, folder="model")
    trd.checkpoints.download(whole, tmp_path / "all")
    with pytest.raises(
        DownloadError, match=r"has files of another model than checkpoint 9 of .*: model/model.safetensors"
    ):
        trd.checkpoints.download(sharded, tmp_path / "all")


def test_a_later_checkpoint_replaces_an_earlier_one_at_once(
    trd: Client, service: RunningService, stored: str, tmp_path: Path
) -> None:
    """A download that fails leaves the files of the earlier checkpoint, not some of each."""
    first, second = sorted(name for name in SHARDED if name.endswith(".safetensors"))
    add_checkpoint(service.database, service.storage_dir, stored, 9, SHARDED)
    add_checkpoint(service.database, service.storage_dir, stored, 11, {**SHARDED, first: b"1" * MIB, second: b"2"})
    add_checkpoint(service.database, service.storage_dir, stored, 13, {**SHARDED, first: b"3"})
    trd.checkpoints.download(trd.checkpoints.manifest(stored, 9), tmp_path)
    (tmp_path / "model" / "eval.json").write_text("mine")
    next(service.storage_dir.rglob(f"{stored}/*/step-*11/{second}")).write_bytes(b"x")
    with pytest.raises(DownloadError, match="its sha256 is not the manifest's"):
        trd.checkpoints.download(trd.checkpoints.manifest(stored, 11), tmp_path, num_parallel=1)
    there = contents(tmp_path)
    assert [there.pop(name) for name in set(there) if name.endswith(".part")] == [b"1" * MIB], "to be continued"
    assert there == {**SHARDED, "model/eval.json": b"mine"}
    trd.checkpoints.download(trd.checkpoints.manifest(stored, 13), tmp_path)
    assert contents(tmp_path) == {**SHARDED, first: b"3", "model/eval.json": b"mine"}, "and no part of another"


def test_a_damaged_part_is_fetched_anew(trd: Client, stored: str, tmp_path: Path) -> None:
    manifest = trd.checkpoints.manifest(stored)
    file = next(file for file in manifest.files if file.name == "state/state.pt")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / f"state.pt.{file.sha256[:12]}.part").write_bytes(b"damaged")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(b"[]")  # as long as the right one
    counted: list[int] = []
    trd.checkpoints.download(manifest, tmp_path, on_bytes=counted.append)
    assert contents(tmp_path) == FILES
    assert sum(counted) == manifest.num_bytes


def test_bytes_that_are_not_the_manifests_never_get_a_name(
    trd: Client, service: RunningService, stored: str, tmp_path: Path
) -> None:
    (path,) = (path for path in service.storage_dir.rglob("state.pt") if stored in str(path))
    path.write_bytes(b"x" * 300_000)
    with pytest.raises(DownloadError, match=r"state/state.pt: its sha256 is not the manifest's"):
        trd.checkpoints.download(trd.checkpoints.manifest(stored), tmp_path)
    assert not (tmp_path / "state" / "state.pt").exists()


def test_a_deleted_checkpoint_is_reported(trd: Client, service: RunningService, stored: str, tmp_path: Path) -> None:
    manifest = trd.checkpoints.manifest(stored)
    add_checkpoint(service.database, service.storage_dir, stored, 9, {"model/config.json": b"{}"})
    trd.jobs.cancel(stored)
    trd.checkpoints.delete(stored, 7)
    with pytest.raises(NotFoundError):
        trd.checkpoints.download(manifest, tmp_path)
    assert trd.checkpoints.manifest(stored).step == 9


def test_a_disk_error_is_reported(trd: Client, stored: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written"):
        trd.checkpoints.download(trd.checkpoints.manifest(stored), tmp_path / "file" / "target")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "model/../../x", "a\\b", "C:/x", ""])
def test_no_name_leads_out_of_the_folder(trd: Client, stored: str, tmp_path: Path, name: str) -> None:
    manifest = trd.checkpoints.manifest(stored)
    file = CheckpointFileView(name=name, num_bytes=1, sha256="0" * 64, url="/x")
    with pytest.raises(DownloadError, match="outside"):
        wanted_files(manifest.model_copy(update={"files": [file]}), tmp_path, None, None)


def test_parts_of_two_versions_are_not_mixed(tmp_path: Path) -> None:
    files = [CheckpointFileView(name="f", num_bytes=2, sha256=digit * 64, url="/f") for digit in "01"]
    for file in files:
        partial = PartialFile(file, tmp_path / "f", None)
        assert "range" not in partial.call().headers
        (tmp_path / f"f.{file.sha256[:12]}.part").write_bytes(b"x")
        assert partial.call().headers["if-range"] == f'"{file.sha256}"'


def test_the_async_client_downloads_too(proxy: BreakingProxy, stored: str, tmp_path: Path) -> None:
    async def use() -> None:
        async with AsyncClient(proxy.url, ADMIN_KEY) as trd:
            manifest = await trd.checkpoints.manifest(stored)
            proxy.cut_all()
            proxy.cut_after.extend([2 * MIB, 3 * MIB])
            done = await trd.checkpoints.download(manifest, tmp_path, num_parallel=2)
            assert done.num_bytes == manifest.num_bytes
            with pytest.raises(DownloadError):
                await trd.checkpoints.download(manifest, tmp_path, folder="absent")

    asyncio.run(use())
    assert contents(tmp_path) == FILES


@pytest.fixture
def presigning(tmp_path: Path, s3_url: str, s3_server: S3Server) -> Iterator[tuple[str, str, BreakingProxy]]:
    """A service that redirects downloads to its store, its job with a checkpoint, and the relay before that store."""
    for name in ("small", "small-teacher"):
        write_model(tmp_path / "models" / name, context=40_960)
    with breaking_proxy(s3_server.port) as store:
        settings = {"TRD_PRESIGNED_DOWNLOADS": "1", "STORAGE_URL": s3_url, "TRD_MODELS": f"{tmp_path}/models/*"}
        endpoint = {"AWS_ENDPOINT_URL": store.url, "TRD_API_KEY": ADMIN_KEY}
        with live_server(tmp_path / "data", **settings, **endpoint) as server:
            with httpx.Client(base_url=server.url, headers=AUTHORIZED) as client:
                job_id = submit(client)
            database = Database(f"sqlite:///{tmp_path / 'data' / 'trd.db'}")
            add_checkpoint(database, s3_url, job_id, 7, FILES)
            database.dispose()
            yield server.url, job_id, store


def test_a_redirect_to_the_store_is_followed_without_the_key_and_resumed(
    presigning: tuple[str, str, BreakingProxy], tmp_path: Path
) -> None:
    url, job_id, store = presigning
    with Client(url, ADMIN_KEY) as trd:
        manifest = trd.checkpoints.manifest(job_id)
        before = store.num_answer_bytes
        store.cut_all()
        store.cut_after.extend([2 * MIB, MIB])
        counted: list[int] = []
        trd.checkpoints.download(manifest, tmp_path / "sync", num_parallel=1, on_bytes=counted.append)
        assert contents(tmp_path / "sync") == FILES
        assert sum(counted) == manifest.num_bytes
        fetched = store.num_answer_bytes - before
        assert manifest.num_bytes <= fetched < manifest.num_bytes + MIB // 2, "all came from the store, and once"

    async def use() -> None:
        async with AsyncClient(url, ADMIN_KEY) as trd:
            await trd.checkpoints.download(manifest, tmp_path / "async", num_parallel=2)

    asyncio.run(use())
    assert contents(tmp_path / "async") == FILES


def test_a_store_that_clients_cannot_reach_is_named(
    presigning: tuple[str, str, BreakingProxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, job_id, _ = presigning
    monkeypatch.setattr("client.downloads.MAX_FAILURES", 0)
    monkeypatch.setattr("client._sync.transport.store_request", lambda _: httpx.Request("GET", "http://127.0.0.1:1/x"))
    with Client(url, ADMIN_KEY) as trd, pytest.raises(ConnectionFailedError, match=r"the store at 127\.0\.0\.1 cannot"):
        trd.checkpoints.download(trd.checkpoints.manifest(job_id), tmp_path)


def test_the_store_gets_the_range_and_nothing_of_ours() -> None:
    sent = {"authorization": "Bearer key", "range": "bytes=5-", "if-range": '"x"', "accept-encoding": "identity"}
    request = httpx.Request("GET", "https://api/jobs/j/f", headers=sent, extensions={"timeout": {"read": 1.0}})
    redirect = httpx.Response(307, headers={"location": "https://store/f?X-Amz-Signature=1"}, request=request)
    asked = store_request(redirect)
    assert str(asked.url) == "https://store/f?X-Amz-Signature=1"
    assert dict(asked.headers) == {"host": "store", "accept-encoding": "identity", "range": "bytes=5-"}
    assert asked.extensions == request.extensions
