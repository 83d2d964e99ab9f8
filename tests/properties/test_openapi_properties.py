"""The whole API under generated requests, by schemathesis, against a served application.

No answer may be a 500, or be one that the OpenAPI document does not describe; wrong requests are refused, and
nothing is answered without a key. Once on whatever is generated, once on objects that exist, and in sequences of
calls that hand ids on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from contract.database import Database
from tests.properties.known_objects import IDS_VARIABLE
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.finished_job import CONTENT, MODELS, add_finished_job
from tests.service.live_server import LiveServer, live_server
from tests.service.records import submit, upload

pytestmark = pytest.mark.extended

NUM_KEPT = 3
NUM_EXPENDABLE = 10

UNCHECKED = "positive_data_acceptance"
"""The check that is left out: a fitting request is accepted only if its models and data are there."""


WAITING = "/(chat|view)$"
"""Not called on jobs that are there: each call waits for a worker, or for a tab. tests/service/test_chats.py and
test_places.py have them; on jobs that are not there, they are called here too."""


@dataclass(frozen=True)
class ServerUnderTest:
    """A server with objects on it."""

    server: LiveServer
    objects: Path


def add_objects(server: LiveServer, data_dir: Path) -> dict[str, dict[str, list[str]]]:
    database = Database(f"sqlite:///{data_dir / 'trd.db'}")
    with httpx.Client(base_url=server.url, headers=AUTHORIZED, timeout=60) as client:
        kept = [add_finished_job(client, database, data_dir / "storage") for _ in range(NUM_KEPT)]
        kept += [submit(client, **MODELS) for _ in range(NUM_KEPT)]
        gone = [add_finished_job(client, database, data_dir / "storage") for _ in range(NUM_EXPENDABLE)]
        keys = [client.post("/keys", json={"name": "x"}).json()["id"] for _ in range(NUM_EXPENDABLE)]
        datasets = {"kept": [upload(client)], "expendable": [upload(client) for _ in range(NUM_EXPENDABLE)]}
    database.dispose()
    parts = {
        "step": ["1", "2", "latest"],
        "trajectory_id": ["0:0", "0:1"],
        "model": ["tiny-student"],
        "file": list(CONTENT),
    }
    return {
        "kept": {"job_id": kept, "dataset_id": datasets["kept"], **parts},
        "expendable": {"job_id": gone, "dataset_id": datasets["expendable"], "key_id": keys, **parts},
    }


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    folder = tmp_path_factory.mktemp("properties")
    limits = {"TRD_API_KEY": ADMIN_KEY, "TRD_MAX_REQUESTS_PER_MINUTE": "10000000", "TRD_MAX_QUEUED_JOBS": "1000000"}
    with live_server(folder / "data", **limits) as server:
        objects = folder / "objects.json"
        objects.write_text(json.dumps(add_objects(server, folder / "data")), encoding="utf-8")
        yield ServerUnderTest(server, objects)


def run(tested: ServerUnderTest, *options: str, on_known_objects: bool, timeout_seconds: float) -> None:
    """Run schemathesis; if it finds something, its report is the message."""
    env = {**os.environ, "NO_COLOR": "1", "SCHEMATHESIS_HOOKS": "tests.properties.known_objects"}
    if on_known_objects:
        env[IDS_VARIABLE] = str(tested.objects)
        options = ("--exclude-path-regex", WAITING, *options)
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(Path(__file__).parent / "schemathesis.toml"),
    ]
    command += ["run", f"{tested.server.url}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {ADMIN_KEY}", "--exclude-checks", UNCHECKED, "--warnings", "off"]
    command += ["--continue-on-failure", "--request-timeout", "30", *options]
    result = subprocess.run(
        command,
        env=env,
        cwd=tested.objects.parent,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-3000:]
    assert "defect of the service" not in tested.server.log.read_text()


DETERMINISTIC = ("--generation-deterministic", "--seed", "1")
"""The same requests every time."""

MAX_EXAMPLES = os.environ.get("TRD_MAX_EXAMPLES", "25")
"""Requests that `test_for_long` generates for each operation; `make fuzz` generates more."""


def test_every_request_is_answered_as_documented(tested: ServerUnderTest) -> None:
    options = (*DETERMINISTIC, "--phases", "examples,coverage,fuzzing", "--max-examples", "5")
    run(tested, *options, on_known_objects=False, timeout_seconds=120)


def test_what_is_there_is_shown_as_documented(tested: ServerUnderTest) -> None:
    options = (*DETERMINISTIC, "--mode", "positive", "--phases", "coverage,fuzzing,stateful", "--max-examples", "5")
    run(tested, *options, on_known_objects=True, timeout_seconds=120)


@pytest.mark.parametrize("on_known_objects", [False, True])
def test_for_long(tested: ServerUnderTest, on_known_objects: bool) -> None:
    """Other requests every time; the phases that are the same every time are those of the two tests above."""
    mode = ("--mode", "positive") if on_known_objects else ()
    options = (*mode, "--phases", "fuzzing,stateful", "--max-examples", MAX_EXAMPLES, "--generation-database", "none")
    run(tested, *options, on_known_objects=on_known_objects, timeout_seconds=580)
