from __future__ import annotations

import base64
import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from contract.storage import CHUNK_BYTES
from tests.service.records import add_checkpoint, set_job, submit

WEIGHTS = random.Random(0).randbytes(2 * CHUNK_BYTES + 12_345)
FILES = {
    "model/config.json": b'{"a": 1}',
    "model/model.safetensors": WEIGHTS,
    "model/empty.txt": b"",
    "state/optimizer.safetensors": b"o" * 512,
    "model/" + "deep/" * 30 + "name.json": b"{}",
}


@pytest.fixture
def job_id(client: TestClient, tmp_path: Path) -> str:
    """A succeeded job with checkpoints at steps 4 and 8."""
    job = submit(client)
    add_checkpoint(client, tmp_path / "storage", job, 4, {"model/config.json": b"old"})
    add_checkpoint(client, tmp_path / "storage", job, 8, FILES)
    set_job(client, job, status="succeeded")
    return job


def test_checkpoints_and_their_manifest(client: TestClient, job_id: str) -> None:
    rows = client.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert [row["step"] for row in rows] == [4, 8]
    assert rows[1]["formats"] == ["full"]
    assert rows[1]["num_bytes"] == sum(map(len, FILES.values()))
    manifest = client.get(f"/jobs/{job_id}/checkpoints/8").json()
    assert {file["name"]: file["sha256"] for file in manifest["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }
    assert client.get(f"/jobs/{job_id}/checkpoints/latest").json() == manifest
    for file in manifest["files"]:
        assert client.get(file["url"]).content == FILES[file["name"]]
    for step in ("5", "-1", "x", "9" * 40):
        response = client.get(f"/jobs/{job_id}/checkpoints/{step}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "checkpoint_not_found")


def test_what_is_kept_for_resuming_alone_is_no_result(client: TestClient, tmp_path: Path) -> None:
    job = submit(client)
    add_checkpoint(client, tmp_path / "storage", job, 0, FILES)
    set_job(client, job, status="paused")
    assert client.get(f"/jobs/{job}/checkpoints").json()["data"] == []
    assert client.get(f"/v1/fine_tuning/jobs/{job}/checkpoints").json()["data"] == []
    for step in ("latest", "0", "00"):
        error = client.get(f"/jobs/{job}/checkpoints/{step}").json()["error"]
        assert error["message"] == f"{job} has no checkpoint {step}; there are: none"
        assert client.get(f"/jobs/{job}/checkpoints/{step}/archive").status_code == 404
        assert client.delete(f"/jobs/{job}/checkpoints/{step}").status_code == 404
    add_checkpoint(client, tmp_path / "storage", job, 4, FILES)
    assert [row["step"] for row in client.get(f"/jobs/{job}/checkpoints").json()["data"]] == [4]
    assert [row["step_number"] for row in client.get(f"/v1/fine_tuning/jobs/{job}/checkpoints").json()["data"]] == [4]
    assert client.get(f"/jobs/{job}/checkpoints/latest").json()["step"] == 4


def test_a_file_comes_with_its_digest(client: TestClient, job_id: str) -> None:
    url = f"/jobs/{job_id}/checkpoints/8/files/model/model.safetensors"
    response = client.get(url)
    digest = hashlib.sha256(WEIGHTS)
    assert response.content == WEIGHTS
    assert response.headers["etag"] == f'"{digest.hexdigest()}"'
    assert response.headers["x-checksum-sha256"] == digest.hexdigest()
    assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert response.headers["content-length"] == str(len(WEIGHTS))
    assert response.headers["accept-ranges"] == "bytes"
    assert 'filename="model.safetensors"' in response.headers["content-disposition"]
    head = client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(WEIGHTS))
    assert client.get(url, headers={"if-none-match": response.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("cut", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(WEIGHTS) - 1])
def test_a_resumed_download_is_byte_exact(client: TestClient, job_id: str, cut: int) -> None:
    url = f"/jobs/{job_id}/checkpoints/8/files/model/model.safetensors"
    etag = client.head(url).headers["etag"]
    response = client.get(url, headers={"range": f"bytes={cut}-", "if-range": etag})
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {cut}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
    assert WEIGHTS[:cut] + response.content == WEIGHTS


def test_ranges_at_the_edges(client: TestClient, job_id: str) -> None:
    url = f"/jobs/{job_id}/checkpoints/8/files/model/model.safetensors"
    assert client.get(url, headers={"range": "bytes=-5"}).content == WEIGHTS[-5:]
    assert client.get(url, headers={"range": "bytes=3-3"}).content == WEIGHTS[3:4]
    beyond = client.get(url, headers={"range": f"bytes={len(WEIGHTS)}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{len(WEIGHTS)}"
    assert beyond.json()["error"]["code"] == "range_not_satisfiable"
    changed = client.get(url, headers={"range": "bytes=3-", "if-range": '"other"'})
    assert (changed.status_code, changed.content) == (200, WEIGHTS)
    several = client.get(url, headers={"range": "bytes=0-1,4-5"})
    assert (several.status_code, len(several.content)) == (200, len(WEIGHTS))


@pytest.mark.parametrize(
    "name",
    [
        "../8/model/config.json",
        "%2e%2e/%2e%2e/trd.db",
        "..%252f..%252ftrd.db",
        "/etc/passwd",
        "model",
        "model/config.json/",
        "",
    ],
)
def test_no_path_of_a_client_is_ever_opened(client: TestClient, job_id: str, name: str) -> None:
    response = client.get(f"/jobs/{job_id}/checkpoints/8/files/{name}")
    assert response.status_code == 404


def test_an_archive_holds_every_file_and_their_digests(client: TestClient, job_id: str) -> None:
    response = client.get(f"/jobs/{job_id}/checkpoints/8/archive")
    assert response.status_code == 200
    assert int(response.headers["content-length"]) == len(response.content)
    folder = f"{job_id}-step-8"
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    sums = members.pop(f"{folder}/SHA256SUMS").decode()
    assert members == {f"{folder}/{name}": content for name, content in FILES.items()}
    assert f"{hashlib.sha256(WEIGHTS).hexdigest()}  model/model.safetensors\n" in sums
    assert len(sums.splitlines()) == len(FILES)


def test_an_archive_may_hold_one_folder(client: TestClient, job_id: str) -> None:
    response = client.get(f"/jobs/{job_id}/checkpoints/8/archive", params={"folder": "state"})
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert names == ["state/optimizer.safetensors", "SHA256SUMS"]
    assert client.get(f"/jobs/{job_id}/checkpoints/8/archive", params={"folder": "stat"}).status_code == 404


def test_a_lost_file_is_reported_before_the_answer_begins(client: TestClient, job_id: str, tmp_path: Path) -> None:
    next((tmp_path / "storage").rglob("optimizer.safetensors")).unlink()
    for path in ("files/state/optimizer.safetensors", "archive"):
        response = client.get(f"/jobs/{job_id}/checkpoints/8/{path}")
        assert response.status_code == 404
        assert "no longer in the storage" in response.json()["error"]["message"]


def test_no_checkpoint_goes_while_a_worker_chooses_the_one_to_go_on_from(client: TestClient, job_id: str) -> None:
    for status in ("running", "pausing", "cancelling"):
        set_job(client, job_id, status=status, phase="preparing")
        refused = client.delete(f"/jobs/{job_id}/checkpoints/4")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "checkpoint_in_use")
    set_job(client, job_id, status="running", phase="rollout")
    assert client.delete(f"/jobs/{job_id}/checkpoints/4").status_code == 200


def test_a_checkpoint_is_deleted_unless_the_job_continues_from_it(
    client: TestClient, job_id: str, tmp_path: Path
) -> None:
    for status in ("running", "paused", "failed"):
        set_job(client, job_id, status=status)
        response = client.delete(f"/jobs/{job_id}/checkpoints/8")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "checkpoint_in_use")
    assert client.delete(f"/jobs/{job_id}/checkpoints/4").status_code == 200
    assert [row["step"] for row in client.get(f"/jobs/{job_id}/checkpoints").json()["data"]] == [8]
    assert not list((tmp_path / "storage").rglob("step-00000004"))
    set_job(client, job_id, status="succeeded")
    assert client.delete(f"/jobs/{job_id}/checkpoints/latest").status_code == 200
    assert not [path for path in (tmp_path / "storage" / "jobs").rglob("*") if path.is_file()]
