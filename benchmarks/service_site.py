"""The servers that `benchmarks.service` measures, on SQLite and PostgreSQL, and their clients."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from benchmarks.service_load import Target
from contract.database import Database
from service.db import migrate
from tests.servers import PostgresServer, RedisServer
from tests.service.live_server import live_server

DatabaseKind = Literal["sqlite", "postgresql"]
ROWS = "".join(f'{{"problem": "{i} + {i}", "answer": "{2 * i}"}}\n' for i in range(1, 41))
FLOOR = "benchmarks.service_floor:app"


@dataclass(frozen=True)
class Ours:
    """A running service, used as its administrator."""

    target: Target
    database: Database
    storage_dir: Path
    pid: int

    def call(self, method: str, path: str, *, key: str | None = None, **content: Any) -> dict[str, Any]:
        """Send a request that must succeed and is not measured."""
        headers = dict(self.target.headers) if key is None else {"authorization": f"Bearer {key}"}
        headers |= content.pop("headers", {})
        answer = httpx.request(method, f"{self.target.url}{path}", headers=headers, timeout=60, **content)
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document

    def new_owner(self, name: str) -> tuple[Target, dict[str, Any]]:
        """Return a client of a new owner, and the body of a job on the owner's dataset."""
        key = self.call("POST", "/keys", json={"name": name, "owner": name, "scopes": ["submit"]})["key"]
        return Target(self.target.url, (("authorization", f"Bearer {key}"),)), self.job_body(key)

    def job_body(self, key: str | None = None) -> dict[str, Any]:
        """Return a valid body, with a new dataset."""
        content_type = {"content-type": "application/jsonl"}
        dataset = self.call("POST", "/datasets", key=key, content=ROWS, headers=content_type)
        return {"mode": "trd", "student": "tiny-student", "teacher": "tiny-teacher", "dataset": dataset["id"]}

    def submit(self) -> str:
        """Submit a job and return its id."""
        return str(self.call("POST", "/jobs", json=self.job_body())["id"])


@dataclass
class Site:
    """One kind of database. Everything it starts is stopped when `running` ends."""

    kind: DatabaseKind
    folder: Path
    running: ExitStack
    existing_url: str | None = None
    """A database to use instead of new ones."""
    _postgres: PostgresServer | None = field(default=None, repr=False)
    _num_servers: int = 0

    def database_url(self) -> str:
        """Create a database with our schema, or return the existing one."""
        if self.existing_url is not None:
            url = self.existing_url
        elif self.kind == "sqlite":
            url = f"sqlite:///{self.folder / secrets.token_hex(4)}.db"
        else:
            if self._postgres is None:
                self._postgres = PostgresServer()
                self.running.callback(self._postgres.stop)
            url = self._postgres.create_database()
        migrate(url)
        return url

    def floor(self) -> tuple[Target, int]:
        """Start the floor on a new database; return it and its process id."""
        data_dir = self.folder / "floor"
        server = self.running.enter_context(live_server(data_dir, app=FLOOR, DATABASE_URL=self.database_url()))
        return Target(server.url), server.process.pid

    @contextmanager
    def ours(self) -> Iterator[Ours]:
        """Start the service on a new database, with rate limits and quotas raised."""
        self._num_servers += 1
        data_dir = self.folder / f"ours-{self._num_servers}"
        key, url = secrets.token_hex(16), self.database_url()
        environment = {
            "DATABASE_URL": url,
            "TRD_API_KEY": key,
            "TRD_MAX_REQUESTS_PER_MINUTE": "100000000",
            "TRD_MAX_STREAMS_PER_KEY": "100000",
            "TRD_MAX_STREAMS": "100000",
            "STORAGE_URL": f"file://{data_dir / 'storage'}",
        }
        if self.kind == "postgresql":
            redis = RedisServer()
            self.running.callback(redis.stop)
            environment["BROKER_URL"] = redis.url
        with live_server(data_dir, **environment) as server:
            database = Database(url)
            target = Target(server.url, (("authorization", f"Bearer {key}"),))
            yield Ours(target, database, data_dir / "storage", server.process.pid)
            database.dispose()
