"""The services of docker-compose.yml as local processes, against a real PostgreSQL and Redis."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from tests.compose.compose_file import CHECKOUT, load
from tests.servers import Server, die_with_parent, find_redis_program, free_port, unprivileged_user

SECRETS = {
    "REDIS_PASSWORD": "redis0secret",
    "TRD_API_KEY": "a-key-of-the-operator",
    "TRD_KEY_PEPPER": "a-pepper-of-the-operator",
}
STOP_SECONDS = 30


class ComposeRedis(Server):
    """Redis by the file's own command, on a free port of 127.0.0.1."""

    def __init__(self, service: Mapping[str, Any], password: str) -> None:
        program = find_redis_program()
        super().__init__("trd-compose-redis-", unprivileged_user("redis"))
        self.port, self._password = free_port(), password
        shell, flag, script = service["command"]
        script = script.replace("redis-server", shlex.quote(str(program)), 1)
        here = f"{script} --bind 127.0.0.1 --port {self.port} --dir {self.folder}"
        environment = [f"{name}={value}" for name, value in service["environment"].items()]
        try:
            self.serve(["env", *environment, shell, flag, here], self._answers)
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        with redis.Redis(port=self.port, password=self._password, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


class Deployment:
    """Where the file's containers, host names and folders lie on this machine."""

    def __init__(self, folder: Path, *, database_url: str, postgres_password: str) -> None:
        self.folder = folder
        self.api_port = free_port()
        self.secrets = {**SECRETS, "POSTGRES_PASSWORD": postgres_password}
        self.services: dict[str, Any] = load(self.secrets)["services"]
        self.redis = ComposeRedis(self.services["redis"], SECRETS["REDIS_PASSWORD"])
        self._postgres = database_url.rpartition("@")[2]  # host:port/database
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(list(self._running)):
            self.stop(name)
        self.redis.stop()

    def _here(self, value: str) -> str:
        """Return a value of the file, with the names and folders of containers replaced by those of this machine."""
        places = {
            "@postgres:5432/trd": f"@{self._postgres}",
            "@redis:6379/": f"@127.0.0.1:{self.redis.port}/",
            "/app/": f"{CHECKOUT}/",
            "/data": str(self.folder / "data"),
            "0.0.0.0": "127.0.0.1",
        }
        for there, here in places.items():
            value = value.replace(there, here)
        return value

    def environment(self, name: str) -> dict[str, str]:
        """Return the service's variables; of this machine's it has only those that tell where programs are found."""
        declared = {key: self._here(str(value)) for key, value in self.services[name].get("environment", {}).items()}
        if "UVICORN_PORT" in declared:
            declared["UVICORN_PORT"] = str(self.api_port)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # One thread each: the machine that runs the tests has few cores.
        return {"PATH": path, "HOSTNAME": socket.gethostname(), "OMP_NUM_THREADS": "1", **declared}

    def log(self, name: str) -> str:
        """Return what the service has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def run(self, name: str) -> int:
        """Run a service that ends by itself; returns its exit code."""
        return self._start(name).wait(timeout=120)

    def start(self, name: str) -> None:
        """Start a service that lasts."""
        self._running[name] = self._start(name)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                self.services[name]["command"],
                cwd=CHECKOUT,  # the images' WORKDIR
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def stop(self, name: str) -> int:
        """Stop a service as Compose does, and return its exit code."""
        process = self._running.pop(name)
        process.terminate()
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def is_healthy(self, name: str, *, replace: Mapping[str, str] | None = None) -> bool:
        """Run the service's health check once. `replace` puts in what a container has in another place."""
        kind, script = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        for there, here in (replace or {}).items():
            assert there in script
            script = script.replace(there, here)
        command = ["sh", "-c", script]
        result = subprocess.run(command, cwd=CHECKOUT, env=self.environment(name), capture_output=True, timeout=60)
        return result.returncode == 0
