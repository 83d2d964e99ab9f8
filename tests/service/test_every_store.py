"""The service over each kind of store: upload, preview, download, delete, and a store that is gone."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

import httpx
import pyarrow
import pytest
from fastapi.testclient import TestClient
from pyarrow import parquet

from contract.storage import CHUNK_BYTES, Storage
from service.datasets.upload import PIECE_BYTES
from tests.servers import free_port
from tests.service.conftest import MakeClient
from tests.service.records import ROWS, add_checkpoint, set_job, submit, upload

MODELS = Path(__file__).parents[2] / "testbed" / "models"
WEIGHTS = random.Random(0).randbytes(CHUNK_BYTES + 12_345)
FILES = {"model/model.safetensors": WEIGHTS, "model/config.json": b"{}", "state/rng.bin": b"r"}
MODEL_URL = "checkpoints/8/files/model/model.safetensors"


@pytest.fixture
def served(make_client: MakeClient, sqlite_url: str, storage_url: str, models_dir: Path) -> TestClient:
    return make_client(sqlite_url, storage_url=storage_url, models=f"{models_dir}/*,{MODELS}/*")


@pytest.fixture
def job_url(served: TestClient, storage_url: str) -> str:
    """A succeeded job with a checkpoint at step 8."""
    job_id = submit(served)
    add_checkpoint(served, storage_url, job_id, 8, FILES)
    set_job(served, job_id, status="succeeded")
    return f"/jobs/{job_id}"


def as_parquet(num_rows: int) -> bytes:
    rows = [{"problem": f"{i}+{i}", "answer": str(2 * i)} for i in range(num_rows)]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


LARGE_ROW = json.dumps({"problem": "1 + 1", "answer": "2", "solution": "so " * 5000 + "2"}) + "\n"
LARGE_ROWS = LARGE_ROW.encode() * (2 * PIECE_BYTES // len(LARGE_ROW) + 1)


@pytest.mark.parametrize("content", [ROWS.encode(), LARGE_ROWS, as_parquet(100)], ids=["small", "large", "parquet"])
def test_a_dataset_is_uploaded_previewed_downloaded_and_deleted(
    served: TestClient, storage_url: str, content: bytes
) -> None:
    media_type = "application/vnd.apache.parquet" if content.startswith(b"PAR1") else "application/jsonl"
    uploaded = served.post("/datasets", content=content, headers={"content-type": media_type})
    assert uploaded.status_code == 201, uploaded.text
    dataset = uploaded.json()
    assert dataset["sha256"] == hashlib.sha256(content).hexdigest()
    preview = served.get(f"/datasets/{dataset['id']}/preview", params={"model": "tiny-student", "limit": 3})
    assert [row["row"] for row in preview.json()["data"]] == [1, 2, 3]
    assert served.get(f"/v1/files/{dataset['id']}/content").content == content
    assert served.delete(f"/datasets/{dataset['id']}").status_code == 200
    with pytest.raises(FileNotFoundError):
        Storage(storage_url).read(f"datasets/{dataset['id']}/rows.jsonl")


def test_a_refused_upload_leaves_nothing(served: TestClient, storage_url: str) -> None:
    refused = served.post("/datasets", content=ROWS + "{}\n", headers={"content-type": "application/jsonl"})
    assert refused.status_code == 422, refused.text
    assert Storage(storage_url).folders("datasets") == []


def test_a_checkpoint_is_downloaded_whole_in_parts_and_as_a_tar(
    served: TestClient, job_url: str, storage_url: str
) -> None:
    whole = served.get(f"{job_url}/{MODEL_URL}")
    assert whole.content == WEIGHTS
    assert whole.headers["x-checksum-sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    part = served.get(f"{job_url}/{MODEL_URL}", headers={"range": "bytes=1000-", "if-range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, WEIGHTS[1000:])
    answer = served.get(f"{job_url}/checkpoints/8/archive")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        sizes = {member.name.partition("/")[2]: member.size for member in archive}
    assert {name: sizes[name] for name in FILES} == {name: len(content) for name, content in FILES.items()}
    Storage(storage_url).remove_tree(f"{job_url[1:]}/attempt-0001/step-00000008/state")
    for path in ("checkpoints/8/files/state/rng.bin", "checkpoints/8/archive"):
        assert served.get(f"{job_url}/{path}").json()["error"]["code"] == "file_not_found"
    assert served.delete(job_url).status_code == 200
    assert Storage(storage_url).folders("jobs") == []


def test_readiness_tries_the_store(served: TestClient) -> None:
    answer = served.get("/readyz")
    assert (answer.status_code, answer.json()["storage"]) == (200, "ok")


@pytest.mark.parametrize("is_bucket_missing", [False, True])
def test_a_store_that_is_gone_makes_the_service_unready_and_uploads_unavailable(
    make_client: MakeClient,
    sqlite_url: str,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    is_bucket_missing: bool,
) -> None:
    if is_bucket_missing:
        s3_url = "s3://no-such-bucket"
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    client = make_client(sqlite_url, storage_url=s3_url)
    answer = client.get("/readyz")
    reason = "the bucket does not exist" if is_bucket_missing else "HTTP error: error sending request"
    assert (answer.status_code, answer.json()["database"]) == (503, "ok")
    assert answer.json()["storage"] == f"not writable: {reason}; check STORAGE_URL and the AWS_ variables"
    refused = client.post("/datasets", content=ROWS, headers={"content-type": "application/jsonl"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert client.get("/datasets").json()["data"] == []


@pytest.fixture
def presigning(make_client: MakeClient, sqlite_url: str, s3_url: str) -> TestClient:
    return make_client(sqlite_url, storage_url=s3_url, presigned_downloads=True)


def test_downloads_are_redirected_to_the_store_if_the_operator_says_so(presigning: TestClient, s3_url: str) -> None:
    job_id = submit(presigning)
    add_checkpoint(presigning, s3_url, job_id, 8, FILES)
    url = f"/jobs/{job_id}/{MODEL_URL}"
    etag = presigning.head(url).headers["etag"]
    assert etag == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"', "a question about the file is answered here"
    for headers in ({}, {"range": "bytes=1000-", "if-range": etag}):
        answer = presigning.get(url, headers=headers, follow_redirects=False)
        assert (answer.status_code, answer.headers["etag"]) == (307, etag)
        assert answer.headers["cache-control"] == "no-store"
        found = httpx.get(answer.headers["location"], headers={k: v for k, v in headers.items() if k == "range"})
        assert found.content == WEIGHTS[1000 if headers else 0 :]
    assert presigning.get(url, headers={"if-none-match": etag}, follow_redirects=False).status_code == 304
    changed = presigning.get(url, headers={"range": "bytes=3-", "if-range": '"other"'}, follow_redirects=False)
    assert (changed.status_code, changed.content) == (200, WEIGHTS), "the store does not know our entity tags"
    beyond = presigning.get(url, headers={"range": f"bytes={len(WEIGHTS)}-"}, follow_redirects=False)
    assert beyond.status_code == 416
    missing = presigning.get(f"/jobs/{job_id}/checkpoints/8/files/none", follow_redirects=False)
    assert missing.status_code == 404
    archive = presigning.get(f"/jobs/{job_id}/checkpoints/8/archive", follow_redirects=False)
    assert archive.status_code == 200, "made here, while it is sent"
    dataset = upload(presigning)
    content = presigning.get(f"/v1/files/{dataset}/content", follow_redirects=False)
    assert content.status_code == 307
    assert httpx.get(content.headers["location"]).text == ROWS


def test_a_folder_cannot_presign_and_is_served_as_ever(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, presigned_downloads=True)
    assert client.get(f"/v1/files/{upload(client)}/content", follow_redirects=False).text == ROWS
