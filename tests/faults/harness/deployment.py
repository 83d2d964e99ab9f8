"""A deployment as it is in production, as processes of this machine: servers, an API, and workers on disjoint disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
from obstore.store import S3Store

from tests.faults.harness.proxies import PostgresProxy, StoreProxy, TcpProxy
from tests.migrations.schema import upgrade
from tests.servers import PostgresServer, RedisServer, S3Server, die_with_parent, free_port
from tests.worker.workbench import eventually, process_exists

CHECKOUT = Path(__file__).parents[3]
API_KEY = "a-key-of-the-operator"
QUICK = {
    "TRD_LEASE_SECONDS": "6",
    "TRD_HEARTBEAT_SECONDS": "0.5",
    "TRD_PROGRESS_SECONDS": "0.2",
    "TRD_POLL_SECONDS": "0.5",
    "TRD_REAPER_SECONDS": "0.5",
    "TRD_RING_SECONDS": "1",
    "TRD_CHECK_MACHINE": "0",
}
AUDIT = """
CREATE TABLE written_steps (
    at timestamptz DEFAULT clock_timestamp(), writer text DEFAULT current_setting('application_name'),
    job_id text, name text, step int, value float, attempt int, owner text, status text
);
CREATE FUNCTION audit() RETURNS trigger AS $$ BEGIN
    INSERT INTO written_steps (job_id, name, step, value, attempt, owner, status)
        SELECT NEW.job_id, NEW.name, NEW.step, NEW.value, jobs.attempt, jobs.lease_owner, jobs.status
        FROM jobs WHERE jobs.id = NEW.job_id;
    RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER audit AFTER INSERT OR UPDATE ON metric_points FOR EACH ROW EXECUTE FUNCTION audit();
"""
"""Who wrote each metric, and who held the job's lease then."""


class Process:
    """One process of the deployment, in a separate session."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Signal 9, and wait for the end."""
        self._process.kill()
        self._process.wait()

    def terminate(self, *, seconds: float = 120) -> int:
        """Shut it down as a service manager does; return its exit code."""
        self._process.terminate()
        return self._process.wait(seconds)


class Worker(Process):
    """A Celery worker with a separate data folder."""

    def __init__(self, environment: Mapping[str, str], folder: Path, *, application: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "celery", "-A", application, "worker", "--loglevel=INFO"]
        super().__init__(command, {**environment, "TRD_DATA_DIR": str(folder)}, folder.with_suffix(".log"))

    def attempt_folder(self, job_id: str) -> Path | None:
        """Return the folder of the newest attempt at the job on this worker's disk."""
        found = sorted((self.folder / "scratch" / job_id).glob("attempt-*"))
        return found[-1] if found else None

    def children(self) -> list[int]:
        """Return the ids of the engine's processes that this worker has started."""
        found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=False).stdout
        return [int(pid) for pid in found.split() if _is_engine(int(pid))]


def _is_engine(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"engine" in command or b"ray_driver" in command


class Deployment:
    """PostgreSQL, Redis, an S3 server, proxies, APIs, and the workers that a case starts; all listen on 127.0.0.1."""

    def __init__(
        self, folder: Path, *, application: str = "worker.celery_app", num_apis: int = 1, **environment: str
    ) -> None:
        self.folder = folder
        self._application = application
        self._environment = environment
        self.workers: dict[str, Worker] = {}
        self.pids: dict[str, int] = {}
        """Process of each worker that was ever started, by the name of its connections."""
        self.apis: list[Process] = []
        self._api_ports = [free_port() for _ in range(num_apis)]
        self._connection: psycopg.Connection[Any] | None = None
        with ExitStack() as stack:  # what has started ends if the rest does not start, or at Ctrl-C
            self._start(stack)
            self._stack = stack.pop_all()

    def _start(self, stack: ExitStack) -> None:
        self.postgres = PostgresServer(synchronous_commit="on")
        stack.callback(self.postgres.stop)
        self.redis = RedisServer()
        stack.callback(self.redis.stop)
        self.store = S3Server()
        stack.callback(self.store.stop)
        self.store_proxy = StoreProxy(self.store.port)
        stack.callback(self.store_proxy.stop)
        self.database_proxy = PostgresProxy(lambda: self.postgres.port)
        stack.callback(self.database_proxy.stop)
        self.database_url = self.postgres.create_database()
        upgrade(self.database_url)
        self.sql(AUDIT)
        self.bucket = self.store.create_bucket()
        stack.callback(self._end_processes)
        self.start_apis()
        self.until_apis_answer()
        self.api_proxy = TcpProxy(lambda: self._api_ports)
        stack.callback(self.api_proxy.stop)
        self.client = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {API_KEY}"},
            timeout=60,
            trust_env=False,
        )
        stack.callback(self.client.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _end_processes(self) -> None:
        if self._connection is not None:
            self._connection.close()
        children = [pid for worker in self.workers.values() for pid in worker.children()]
        for process in (*self.workers.values(), *self.apis):
            process.kill()
        self.wait_until_all_ended(children)

    @property
    def url(self) -> str:
        """Address of the proxy in front of the APIs."""
        return f"http://127.0.0.1:{self.api_proxy.port}"

    def environment(self, name: str) -> dict[str, str]:
        """Return the variables of a process, whose connections to the database have this name."""
        database = self.database_url.replace(f":{self.postgres.port}/", f":{self.database_proxy.port}/")
        return {
            **self.store.environment,
            "AWS_TIMEOUT": "5s",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.store_proxy.port}",
            "STORAGE_URL": f"s3://{self.bucket}/trd",
            "DATABASE_URL": f"{database}?application_name={name}",
            "BROKER_URL": self.redis.url,
            "TRD_API_KEY": API_KEY,
            "TRD_KEY_PEPPER": "a-pepper-of-all-APIs",
            **QUICK,
            **self._environment,
        }

    def start_apis(self) -> None:
        """Start the APIs that do not run, each on its port."""
        for number, port in enumerate(self._api_ports):
            if number < len(self.apis) and self.apis[number].is_alive:
                continue
            folder = self.folder / f"api-{number}"
            server = ["uvicorn", "service.app:app", "--port", str(port), "--log-level", "warning"]
            environment = {**self.environment(folder.name), "TRD_DATA_DIR": str(folder)}
            self.apis[number : number + 1] = [
                Process([sys.executable, "-m", *server], environment, folder.with_suffix(".log"))
            ]

    def until_apis_answer(self) -> None:
        """Wait until all APIs answer."""
        for api, port in zip(self.apis, self._api_ports, strict=True):
            eventually(partial(self._answers, api, port), seconds=90)

    def _answers(self, api: Process, port: int) -> bool:
        assert api.is_alive, api.log.read_text()[-3000:]
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5, trust_env=False).is_success
        return False

    def start_worker(self, name: str, *, folder: Path | None = None, **environment: str) -> Worker:
        """Start a worker, on the disk of an earlier one of that name."""
        if (running := self.workers.get(name)) is not None and running.is_alive:
            return running
        connections = f"{name}-{len(self.pids)}"
        variables = {**self.environment(connections), **environment}
        worker = Worker(variables, folder or self.folder / name, application=self._application)
        self.workers[name] = worker
        self.pids[connections] = worker.pid
        return worker

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement past the proxy, and return its rows."""
        for is_last in (False, True):
            try:
                if self._connection is None:
                    url = self.database_url.replace("+psycopg", "")
                    self._connection = psycopg.connect(url, autocommit=True, connect_timeout=10)
                cursor = self._connection.execute(statement, values or None)  # type: ignore[arg-type]
                return cursor.fetchall() if cursor.description is not None else []
            except psycopg.OperationalError:
                self._connection = None
                if is_last:
                    raise
        raise AssertionError

    @cached_property
    def stored(self) -> S3Store:
        """The workers' storage, past the proxy."""
        given = {name.removeprefix("AWS_").lower(): value for name, value in self.store.environment.items()}
        return S3Store(
            self.bucket,
            prefix="trd",
            endpoint=given["endpoint_url"],
            region=given["region"],
            access_key_id=given["access_key_id"],
            secret_access_key=given["secret_access_key"],
            client_options={"allow_http": True},
        )

    def holder(self, job_id: str) -> Worker:
        """Wait until a worker holds the job's lease, and return it."""

        def find() -> Worker | None:
            ((owner,),) = self.sql("SELECT lease_owner FROM jobs WHERE id = %s", job_id)
            return next((w for w in self.workers.values() if owner and f":{w.pid}:" in owner), None)

        worker: Worker = eventually(find, seconds=120)
        return worker

    def wait_until_all_ended(self, pids: list[int], *, seconds: float = 30) -> None:
        """Wait until none of the processes exists."""
        eventually(lambda: not any(map(process_exists, pids)), seconds=seconds)

    def database_seconds(self) -> float:
        """Return the database's clock, as Unix time."""
        return float(self.sql("SELECT extract(epoch FROM clock_timestamp())")[0][0])
