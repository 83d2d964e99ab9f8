"""A checkpoint is copied as its manifest says, or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO

import pytest

from contract.storage import Storage
from worker.manifest import CheckpointCorruptError, fetch_checkpoint, parse_manifest, store_checkpoint

PREFIX = "jobs/job_1/attempt-0001/step-00000002"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def storage(storage_url: str) -> Storage:
    return Storage(storage_url)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000002"
    files = {"state/rng.bin": b"\x00\x01", "model/model.safetensors": b"weights" * 1000}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    listed = [{"name": n, "num_bytes": len(c), "sha256": sha256(c)} for n, c in files.items()]
    manifest = {"step": 2, "formats": ["full"], "files": listed, "metrics": {"loss": 0.5}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def never() -> bool:
    return False


def test_a_checkpoint_comes_back_as_it_went(storage: Storage, checkpoint: Path, tmp_path: Path) -> None:
    manifest, digest = store_checkpoint(storage, checkpoint, PREFIX, interrupted=never)
    assert manifest.step == 2
    assert manifest.num_bytes == 7002
    target = tmp_path / "resume"
    assert fetch_checkpoint(storage, PREFIX, target, manifest_sha256=digest) == manifest
    for path in checkpoint.rglob("*"):
        if path.is_file():
            assert (target / path.relative_to(checkpoint)).read_bytes() == path.read_bytes()


def test_no_manifest_is_stored_where_a_file_is_not_what_it_says(storage: Storage, checkpoint: Path) -> None:
    (checkpoint / "model/model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors: its sha256 is"):
        store_checkpoint(storage, checkpoint, PREFIX, interrupted=never)
    with pytest.raises(FileNotFoundError):
        storage.read(f"{PREFIX}/manifest.json")
    with pytest.raises(FileNotFoundError):
        storage.read(f"{PREFIX}/model/model.safetensors")


def sent(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the keys whose content is sent to the storage from now on."""
    keys: list[str] = []
    store = storage.store

    def noted(source: IO[bytes], key: str, *, sha256: str | None = None) -> None:
        keys.append(key)
        store(source, key, sha256=sha256)

    monkeypatch.setattr(storage, "store", noted)
    return keys


def test_a_file_of_the_checkpoint_before_is_sent_once_and_outlives_it(
    storage: Storage, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, stored, later = sent(storage, monkeypatch), dict[str, str](), f"{PREFIX}-later"
    store_checkpoint(storage, checkpoint, PREFIX, interrupted=never, stored=stored)
    rewrite(checkpoint, "model/model.safetensors", b"trained on")
    _, digest = store_checkpoint(storage, checkpoint, later, interrupted=never, stored=stored)
    assert keys[2:] == [f"{later}/model/model.safetensors"]
    storage.remove_tree(PREFIX)
    fetch_checkpoint(storage, later, tmp_path / "resume", manifest_sha256=digest)
    assert (tmp_path / "resume" / "state" / "rng.bin").read_bytes() == b"\x00\x01"


def test_a_file_that_the_storage_cannot_copy_is_sent(
    storage: Storage, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, stored, later = sent(storage, monkeypatch), dict[str, str](), f"{PREFIX}-later"
    store_checkpoint(storage, checkpoint, PREFIX, interrupted=never, stored=stored)
    storage.remove_tree(PREFIX)
    _, digest = store_checkpoint(storage, checkpoint, later, interrupted=never, stored=stored)
    assert len(keys) == 4
    fetch_checkpoint(storage, later, tmp_path / "resume", manifest_sha256=digest)


def rewrite(checkpoint: Path, name: str, content: bytes) -> None:
    """Change a file and its line in the manifest."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for line in manifest["files"]:
        if line["name"] == name:
            line |= {"num_bytes": len(content), "sha256": sha256(content)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_an_upload_can_be_given_up(storage: Storage, checkpoint: Path) -> None:
    with pytest.raises(InterruptedError):
        store_checkpoint(storage, checkpoint, PREFIX, interrupted=lambda: True)
    with pytest.raises(FileNotFoundError):
        storage.read(f"{PREFIX}/manifest.json")


@pytest.mark.parametrize("damaged", ["model/model.safetensors", "state/rng.bin", "manifest.json"])
def test_a_damaged_file_is_noticed(storage: Storage, checkpoint: Path, tmp_path: Path, damaged: str) -> None:
    _, digest = store_checkpoint(storage, checkpoint, PREFIX, interrupted=never)
    content = bytearray(storage.read(f"{PREFIX}/{damaged}"))
    content[-2] ^= 1
    storage.write(f"{PREFIX}/{damaged}", bytes(content))
    with pytest.raises(CheckpointCorruptError):
        fetch_checkpoint(storage, PREFIX, tmp_path / "resume", manifest_sha256=digest)


def test_a_missing_file_is_noticed(storage: Storage, checkpoint: Path, tmp_path: Path) -> None:
    _, digest = store_checkpoint(storage, checkpoint, PREFIX, interrupted=never)
    storage.remove_tree(f"{PREFIX}/state")
    with pytest.raises(CheckpointCorruptError):
        fetch_checkpoint(storage, PREFIX, tmp_path / "resume", manifest_sha256=digest)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "manifest.json", "a\\b"])
def test_a_manifest_may_not_name_files_elsewhere(name: str) -> None:
    file = {"name": name, "num_bytes": 1, "sha256": "0" * 64}
    content = json.dumps({"step": 1, "formats": [], "files": [file]}).encode()
    with pytest.raises(CheckpointCorruptError, match=r"files\.0\.name"):
        parse_manifest(content)
