"""``trd up``: the API and a worker on this machine, with the embedded defaults, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from client import Client, ClientSettings, TrdError
from client.cli.output import JsonFlag, answers, print_json, remark
from client.cli.processes import ChildProcess, python_command
from client.errors import SettingsError
from client.settings import LocalService
from contract.settings import DEFAULT_DATA_DIR, DataFolderSettings, make_private_folder

HOST = "127.0.0.1"
START_SECONDS = 90.0
LOOK_SECONDS = 0.2
LOCK_FILE = "up.lock"
NOT_EMBEDDED = ("DATABASE_URL", "BROKER_URL", "STORAGE_URL")


class _Stopping(Exception):  # noqa: N818 - no failure
    """A signal requested the end."""


def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 takes a free port.")] = 8000,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for everything: database, datasets, checkpoints, logs; by default TRD_DATA_DIR, or ./data.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start the API and a worker here, and stop them on Ctrl-C.

    Other commands in the same folder find both by themselves. A job that runs when they are stopped resumes when
    they are started again.
    """
    folder = data_dir or _configured_folder()
    make_private_folder(folder)
    with _alone_on(folder):
        _up(port, folder, as_json=as_json)


def _configured_folder() -> Path:
    try:
        return DataFolderSettings.from_environment().data_dir
    except ValueError as error:
        raise SettingsError(str(error), hint="correct the variable, or give --data-dir") from None


def _up(port: int, data_dir: Path, *, as_json: bool) -> None:
    local = LocalService.of(data_dir)
    key = os.environ.get("TRD_API_KEY") or (local.api_key if local is not None else None)
    key = key or f"trd_local_{secrets.token_urlsafe(24)}"
    service = LocalService(url=f"http://{HOST}:{_checked_port(port)}", api_key=key)
    left_out = [name for name in NOT_EMBEDDED if os.environ.get(name)]
    if left_out:
        remark(f"{', '.join(left_out)}: ignored; `trd up` keeps everything in {data_dir}")
    kept = {name: value for name, value in os.environ.items() if name not in NOT_EMBEDDED}
    environment = {**kept, "TRD_DATA_DIR": str(data_dir.resolve()), "TRD_API_KEY": service.api_key}
    port_flags = ["--host", HOST, "--port", service.url.rpartition(":")[2]]
    api_command = python_command("uvicorn", "service.app:app", *port_flags)
    worker_command = python_command("celery", "-A", "worker.celery_app", "worker", "--loglevel", "INFO")
    api = ChildProcess("API", api_command, environment, data_dir / "api.log")
    worker = ChildProcess("worker", worker_command, environment, data_dir / "worker.log")
    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        _run(api, worker, service, data_dir, as_json=as_json)
    except _Stopping:
        pass
    finally:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)  # already stopping
        running = [process for process in (worker, api) if process.is_running]
        if running:
            remark("stopping; a running job can be resumed from its last checkpoint")
        for process in running:
            process.ask_to_stop()
        for process in running:
            process.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run(api: ChildProcess, worker: ChildProcess, service: LocalService, data_dir: Path, *, as_json: bool) -> None:
    api.start()
    settings = ClientSettings(url=service.url, max_retries=0, connect_seconds=1, read_seconds=5)
    deadline = time.monotonic() + START_SECONDS
    with Client(settings=settings) as trd:
        while not _is_ready(trd):
            api.require_running()
            if time.monotonic() > deadline:
                raise TrdError(f"the API was not ready after {START_SECONDS:.0f} s", hint=f"its log is {api.log}")
            time.sleep(LOOK_SECONDS)
    service.save(data_dir)
    worker.start()
    if as_json:
        print_json({"object": "local_service", **service.model_dump(), "data_dir": str(data_dir)}, is_line=True)
        answers().file.flush()
    else:
        with Client(service.url, service.api_key) as trd:
            link = trd.keys.sign_in_link()
        answers().print(Panel(banner(service, data_dir), title="TRD service", expand=False))
        link_text = Text.assemble("Dashboard, the link signs in once: ", (f"{service.url}{link.path}", "bold"))
        answers().print(link_text, soft_wrap=True)  # a link that is cut into lines cannot be clicked
    while True:
        for process in (api, worker):
            process.require_running()
        time.sleep(LOOK_SECONDS)


def banner(service: LocalService, data_dir: Path) -> Text:
    """Return what `trd up` prints once the API answers: the address, and how another terminal reaches it."""
    is_default = data_dir.resolve() == Path(DEFAULT_DATA_DIR).resolve()
    export = "" if is_default else f"export TRD_DATA_DIR={quote(str(data_dir))}, then "
    return Text.assemble(
        ("URL   ", "dim"), (service.url, "bold"), "\n",
        ("key   ", "dim"), (service.api_key, "bold"), "\n",
        ("data  ", "dim"), f"{data_dir}  (logs: api.log, worker.log)", "\n\n",
        ("In this folder, in another terminal: ", "dim"), export, "trd models", ", ", "trd submit SPEC --watch …", "\n",
        ("Elsewhere: ", "dim"), f"export TRD_URL={service.url} TRD_API_KEY=…", "\n",
        ("Ctrl-C stops both.", "dim"),
    )  # fmt: skip


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stopping


@contextmanager
def _alone_on(data_dir: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel frees however this process ends; raise `TrdError` if it is taken."""
    with (data_dir / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            local = LocalService.of(data_dir)
            address = f" at {local.url}" if local is not None else ""
            raise TrdError(
                f"a service on {data_dir} is already running{address}, or is stopping",
                hint="stop it first and wait for its end, or use another --data-dir",
            ) from None
        yield


def _checked_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise TrdError(
                f"port {port} of {HOST} is not available: {error.strerror}", hint="`trd up --port 0` takes a free one"
            ) from error
        free: int = probe.getsockname()[1]
        return free


def _is_ready(trd: Client) -> bool:
    try:
        return trd.readiness().is_ready
    except TrdError:
        return False
