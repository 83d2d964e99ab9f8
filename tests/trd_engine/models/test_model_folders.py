"""A model by its hub id is the folder that its files lie in: of the cache, offline, or of our own small hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.trd_engine.tiny_runs import MODELS, spec
from trd_engine.config import parse_config
from trd_engine.models.folders import local_folder, with_local_models
from trd_engine.runtime.errors import ModelNotFoundError

ROOT = Path(__file__).parents[3]
ASK = """
import sys
from trd_engine.config import parse_config
from trd_engine.models.folders import with_local_models
from tests.trd_engine.tiny_runs import spec
from pathlib import Path
config = with_local_models(parse_config(spec(Path("."), student=sys.argv[1])))
print(config.student, config.student_name, config.teacher_name)
"""


def test_a_hub_id_becomes_its_folder_and_stays_its_name(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--acme--tiny"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    shutil.copytree(MODELS / "tiny-student", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name, encoding="ascii")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("acme/tiny", f"acme/tiny@{snapshot.name}"):
        printed = subprocess.run(
            [sys.executable, "-c", ASK, name], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert printed.split() == [str(snapshot), name, "None"]


def test_a_folder_is_itself() -> None:
    assert local_folder("/models/odd@name") == "/models/odd@name"
    config = parse_config(spec(Path(), student_name="own"))
    assert with_local_models(config) == config


COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_THE_HUB = (
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model-00001-of-00001.safetensors",
    "modeling_evil.py",
    "pytorch_model.bin",
    "tokenizer.model",
    "training_args.pt",
)


class _Hub(BaseHTTPRequestHandler):
    """As much of a hub as fetching a snapshot of one model takes."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/owner/name/revision/"):
            self._answer(
                json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": n} for n in ON_THE_HUB]})
            )
        elif "/tree/" in self.path:
            files = [{"type": "file", "path": name, "size": 2, "oid": COMMIT} for name in ON_THE_HUB]
            self._answer(json.dumps(files))
        else:
            self._answer("{}")

    do_HEAD = do_GET

    def _answer(self, content: str) -> None:
        self.send_response(200)
        for name, value in (("etag", '"1"'), ("x-repo-commit", COMMIT), ("content-length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_model_without_a_revision_is_fetched_too_and_nothing_that_is_unpickled_or_run(tmp_path: Path) -> None:
    script = (
        "import sys; from trd_engine.models.folders import local_folder; sys.stdout.write(local_folder('owner/name'))"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as hub:
        threading.Thread(target=hub.serve_forever).start()
        address = f"http://127.0.0.1:{hub.server_port}"
        result = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        hub.shutdown()
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in Path(result.stdout).iterdir()) == [
        name for name in ON_THE_HUB if not name.endswith((".bin", ".pt", ".py"))
    ]


@pytest.mark.parametrize("source", ["acme/not there", "no/such/folder/at/all"])
def test_what_is_neither_is_said(source: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"model {source!r} is no folder, and the hub did not provide it"):
        local_folder(source)
