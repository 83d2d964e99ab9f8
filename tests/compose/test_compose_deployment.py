"""A job through the services of docker-compose.yml, each run by its own command and environment."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from testbed.make_data import draw_rows
from tests.compose.deployment import SECRETS, Deployment
from tests.servers import PostgresServer, ServerMissingError, find_postgres_programs

START_SECONDS = 60
JOB_SECONDS = 240

SPEC: dict[str, Any] = {
    "mode": "trd",
    "student": "tiny-student",
    "teacher": "tiny-teacher",
    "lora": None,
    "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 96},
    "refine": {"max_prompt_tokens": 192, "max_new_tokens": 96},
    "optim": {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 2},
    "evaluation": {"holdout": 0.25, "k": 2},
}


pytestmark = pytest.mark.extended


def wait_for(condition: Callable[[], bool], seconds: float, deployment: Deployment, *names: str) -> None:
    """Wait until the condition holds; fails with the ends of the services' logs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {name}\n{deployment.log(name)[-3000:]}" for name in names)
            pytest.fail(f"not within {seconds} s\n{logs}", pytrace=False)
        time.sleep(0.5)


@pytest.fixture(scope="module")
def deployment(
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """Migrated, API and CPU worker started, in the file's order."""
    folder = tmp_path_factory.mktemp("compose")
    url = postgres_server.create_database()
    try:
        deployment = Deployment(folder, database_url=url, postgres_password=postgres_server.password)
    except ServerMissingError as error:
        pytest.skip(str(error))
    with deployment:
        assert deployment.run("migrate") == 0, deployment.log("migrate")
        deployment.start("api")
        deployment.start("worker-cpu")
        wait_for(lambda: deployment.is_healthy("api"), START_SECONDS, deployment, "api")
        yield deployment
    postgres_server.drop_database(url)


@pytest.fixture
def api(deployment: Deployment) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {SECRETS['TRD_API_KEY']}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{deployment.api_port}", headers=headers, timeout=30) as client:
        yield client


def test_a_job_goes_through_and_its_checkpoint_comes_down(deployment: Deployment, api: httpx.Client) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in draw_rows("train", 22, seed=0))
    dataset = api.post("/datasets", content=rows, headers={"content-type": "application/jsonl"})
    assert dataset.status_code == 201, dataset.text
    created = api.post("/jobs", json={**SPEC, "dataset": dataset.json()["id"]})
    assert created.status_code == 201, created.text
    job_url = f"/jobs/{created.json()['id']}"

    def is_over() -> bool:
        return api.get(job_url).json()["status"] in ("succeeded", "failed", "cancelled")

    wait_for(is_over, JOB_SECONDS, deployment, "worker-cpu", "api")
    job = api.get(job_url).json()
    assert job["status"] == "succeeded", job
    assert job["step"] == 2
    manifest = api.get(f"{job_url}/checkpoints/latest").json()
    assert "model/model.safetensors" in [file["name"] for file in manifest["files"]]
    for file in manifest["files"]:
        content = api.get(file["url"]).content
        assert hashlib.sha256(content).hexdigest() == file["sha256"], file["name"]


def test_the_health_checks_of_the_servers_pass(
    deployment: Deployment,
    postgres_server: PostgresServer,
) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed; on Debian: apt-get install redis-server")
    pg_isready = find_postgres_programs() / "pg_isready"
    postgres = {"pg_isready": f"{pg_isready} --host 127.0.0.1 --port {postgres_server.port}"}
    redis = {"redis-cli": f"redis-cli -p {deployment.redis.port}"}
    assert deployment.is_healthy("postgres", replace=postgres)
    assert deployment.is_healthy("redis", replace=redis)


def test_health_checks_distinguish_the_living_from_the_dead(deployment: Deployment) -> None:
    assert deployment.is_healthy("api")
    assert deployment.is_healthy("worker-cpu")
    assert deployment.stop("worker-cpu") == 0, deployment.log("worker-cpu")
    assert not deployment.is_healthy("worker-cpu")
    assert deployment.stop("api") in (0, -signal.SIGTERM), deployment.log("api")  # uvicorn ends by the signal again
    assert not deployment.is_healthy("api")


def test_no_secret_is_logged(deployment: Deployment) -> None:
    for name in ("migrate", "api", "worker-cpu"):
        found = [variable for variable, secret in deployment.secrets.items() if secret in deployment.log(name)]
        assert found == [], name
