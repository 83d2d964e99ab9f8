"""The application on a real port, and the unmodified `openai` client that talks to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from openai import AsyncOpenAI, OpenAI

from tests.servers import free_port
from tests.service.conftest import ADMIN_KEY, MakeStanding

START_SECONDS = 30


@dataclass(frozen=True)
class Service:
    """One application behind two doors."""

    native: TestClient
    """Client for the native calls, and for what the test puts into the database and the storage."""
    url: str
    """Address of the service."""
    clients: ExitStack
    """Closes what `openai` made."""

    def openai(self, **options: Any) -> OpenAI:
        """Make a client as a user does, but without retries: a refusal must not be waited for."""
        return self.clients.enter_context(OpenAI(**_options(self.url, options)))

    def async_openai(self, **options: Any) -> AsyncOpenAI:
        """Make the asynchronous client, which the test closes in its own loop."""
        return AsyncOpenAI(**_options(self.url, options))


def _options(url: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"base_url": f"{url}/v1", "api_key": ADMIN_KEY, "max_retries": 0, "timeout": 30, **options}


@contextmanager
def serving(client: TestClient) -> Iterator[Service]:
    """Serve the client's application, which has started already, until the block ends."""
    port = free_port()
    config = uvicorn.Config(client.app, port=port, lifespan="off", ws="none", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        with ExitStack() as clients:
            yield Service(client, f"http://127.0.0.1:{port}", clients)
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
    assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def service(client: TestClient) -> Iterator[Service]:
    """The service on SQLite."""
    with serving(client) as served:
        yield served


@pytest.fixture(scope="session")
def shared_service(standing: MakeStanding) -> Iterator[Service]:
    """One for all tests of jobs that are refused; their files stay."""
    with standing() as client, serving(client) as served:
        yield served


@pytest.fixture
def either_service(either_client: TestClient) -> Iterator[Service]:
    """The service on SQLite and on PostgreSQL."""
    with serving(either_client) as served:
        yield served


@pytest.fixture(params=[False, True], ids=["lenient", "strict"])
def openai(request: pytest.FixtureRequest, service: Service) -> OpenAI:
    """The client, once as it is and once with strict validation of every answer."""
    return service.openai(_strict_response_validation=request.param)
