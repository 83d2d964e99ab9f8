"""Whatever parses an upload or renders a preview runs in a bounded child; the API process reads no row."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.datasets.child import ChildPool, _run
from service.errors import RateLimitError
from service.settings import Settings
from tests.environment import settings_from
from tests.service.conftest import ADMIN_KEY, AUTHORIZED, MakeClient
from tests.service.live_server import LiveServer, live_server
from tests.service.records import job_body
from tests.trd_data.test_child import shared_text, with_note
from trd_data.child import ChildLimits
from trd_data.errors import DataFileError, FileTooLargeError

JSONL = {"content-type": "application/jsonl"}
MODELS = Path(__file__).parents[2] / "testbed" / "models"
ROWS = b'{"problem": "1+1=", "answer": "2", "solution": "two"}\n{"problem": "2+2=", "answer": "4"}\n'


class Script:
    """Replaces the child by a Python program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
        monkeypatch.setattr("service.datasets.child.command", lambda _request, _limits: [sys.executable, "-c", program])


def pool(**variables: str) -> ChildPool:
    return ChildPool(settings_from(Settings, variables))


async def ask(children: ChildPool, owner: str, limits: ChildLimits = ChildLimits()) -> Any:  # noqa: B008
    with open(os.devnull, "rb") as stream:  # noqa: PTH123
        async with children.present(owner), children.slot(owner):
            return await children.ask(stream, {}, limits)


def test_few_children_run_at_a_time_and_one_of_an_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each child notes when it began and ended."""
    log = tmp_path / "log"
    program = (
        "import json, os, time\n"
        f"log = os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "os.write(log, b'+'); time.sleep(0.1); os.write(log, b'-')\n"
        "print(json.dumps({'found': 1}))"
    )
    Script(monkeypatch, program)

    async def run(owners: str) -> int:
        log.unlink(missing_ok=True)
        children = pool(TRD_MAX_CHECKS="2")
        assert await asyncio.gather(*(ask(children, owner) for owner in owners)) == [1] * len(owners)
        running = [log.read_text()[:place].count("+") - log.read_text()[:place].count("-") for place in range(99)]
        assert not children._turns
        return max(running)

    assert asyncio.run(run("abcd")) == 2
    assert asyncio.run(run("aaa")) == 1


def test_who_waits_too_long_or_sends_too_many_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, "import time; time.sleep(1); print('{\"found\": 1}')")

    async def run() -> None:
        children = pool(TRD_CHECK_WAIT_SECONDS="0.2", TRD_MAX_UPLOADS_PER_OWNER="2")
        first, second, third = await asyncio.gather(*(ask(children, "ann") for _ in range(3)), return_exceptions=True)
        assert first == 1
        for refused in (second, third):
            assert isinstance(refused, RateLimitError)
            assert int(refused.headers["retry-after"]) >= 1
        assert await ask(children, "ann") == 1, "nothing is held afterwards"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import time; time.sleep(60)", FileTooLargeError),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", FileTooLargeError),
        ("import os; os.abort()", DataFileError),
        ("print('x' * 2**25)", DataFileError),
        ("print('[')", DataFileError),
        ("import subprocess; subprocess.Popen(['sleep', '60']); print('nothing')", DataFileError),
    ],
)
def test_whatever_a_child_does_it_ends(program: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, program)
    began = time.monotonic()
    with pytest.raises(error):
        asyncio.run(ask(pool(), "ann", ChildLimits(wall_seconds=1)))
    assert time.monotonic() - began < 5


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def rows_are_checked_once() -> None:
    """Here every upload has a separate child."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("served")
    looping = folder / "models" / "looping"
    shutil.copytree(MODELS / "tiny-student", looping)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (looping / "chat_template.jinja").write_text(loop)
    with live_server(
        folder / "data",
        TRD_API_KEY=ADMIN_KEY,
        TRD_MODELS=f"{MODELS}/*,{looping}",
        TRD_JUDGE_REFERENCES="false",
        TRD_PREVIEW_SECONDS="2",
        TRD_BODY_IDLE_SECONDS="1",
    ) as running:
        yield running


def send(server: LiveServer, content: bytes, *, length: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST /datasets HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
    head += f"content-type: application/jsonl\r\ncontent-length: {length or len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_a_check_ends_when_its_client_leaves(server: LiveServer) -> None:
    long = with_note(shared_text(100_000, 2**19))  # refused in the end, after many seconds
    connection = send(server, long)
    wait_for(lambda: children_of(server.process.pid))
    connection.close()
    wait_for(lambda: not children_of(server.process.pid), seconds=3)


def test_a_check_ends_with_the_service(tmp_path: Path) -> None:
    with live_server(tmp_path / "data", TRD_API_KEY=ADMIN_KEY) as short:
        connection = send(short, with_note(shared_text(100_000, 2**19)))
        wait_for(lambda: children_of(short.process.pid))
        (child,) = children_of(short.process.pid)
        short.process.send_signal(signal.SIGKILL)
        wait_for(
            lambda: not Path(f"/proc/{child}").exists() or b"\0" not in Path(f"/proc/{child}/cmdline").read_bytes()
        )
        connection.close()


def test_a_body_that_stops_is_given_up(server: LiveServer) -> None:
    answer = b""
    with send(server, ROWS, length=10_000) as connection:
        while piece := connection.recv(10_000):  # until the server closes the connection
            answer += piece
    assert b" 408 " in answer.splitlines()[0]
    assert b"request_timeout" in answer


def test_many_unfinished_uploads_hold_no_thread(server: LiveServer) -> None:
    connections = [send(server, ROWS, length=2**29) for _ in range(60)]
    began = time.monotonic()
    with httpx.Client(base_url=server.url, headers=AUTHORIZED, timeout=20) as client:
        assert client.get("/jobs").status_code == 200
        assert client.get("/healthz").status_code == 200
    assert time.monotonic() - began < 5
    answers = [connection.recv(10_000) for connection in connections]
    assert sum(b"too_many_uploads" in answer for answer in answers) == 56
    assert all(b"retry-after: 5" in answer for answer in answers if b"too_many_uploads" in answer)
    for connection in connections:
        connection.close()


@pytest.fixture
def tiny(make_client: MakeClient, sqlite_url: str) -> TestClient:
    return make_client(sqlite_url, models=f"{MODELS}/*")


def test_a_looping_chat_template_ends_the_preview(server: LiveServer) -> None:
    with httpx.Client(base_url=server.url, headers=AUTHORIZED, timeout=30) as client:
        dataset = client.post("/datasets", content=ROWS, headers=JSONL).json()["id"]
        began = time.monotonic()
        answer = client.get(f"/datasets/{dataset}/preview", params={"model": "looping"})
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] in ("model_refused", "preview_too_large")
        assert time.monotonic() - began < 6
        fine = client.get(f"/datasets/{dataset}/preview", params={"model": "tiny-student", "task": "exact"})
        assert fine.status_code == 200, fine.text


def test_a_preview_of_long_rows_is_bounded(tiny: TestClient) -> None:
    rows = [{"problem": "1" * (2**20 - 5000), "answer": "2", "solution": "2" * 4000, "id": i} for i in range(4)]
    lines = "\n".join(map(json.dumps, rows))
    dataset = tiny.post("/datasets", content=lines, headers=JSONL).json()["id"]
    answer = tiny.get(f"/datasets/{dataset}/preview", params={"model": "tiny-student", "task": "exact", "limit": 4})
    assert answer.status_code == 200, answer.text
    assert len(answer.content) < 2**21
    row = answer.json()["data"][0]
    assert (row["is_exact"], row["dropped"][:10]) == (False, "more than ")
    assert all(len(prompt["token_ids"]) <= 4096 and len(prompt["text"]) <= 2**15 for prompt in row["prompts"])


def test_the_preview_reads_rows_as_the_task_does(tiny: TestClient) -> None:
    rows = [{"question": "1", "choices": ["2", "3"], "answer": answer} for answer in (1, 0, 7)]
    content = "\n".join(map(json.dumps, rows[:2]))
    dataset = tiny.post("/datasets", content=content, headers=JSONL).json()["id"]
    query = {"model": "tiny-student", "task": "code"}
    answer = tiny.get(f"/datasets/{dataset}/preview", params=query)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("row 1: tests")


@pytest.mark.parametrize("as_form", [False, True])
def test_a_mapping_of_columns_is_checked_with_the_rows_and_kept(tiny: TestClient, as_form: bool) -> None:
    content = b'{"aufgabe": "1+1", "loesung": "2"}\n'
    mapping = json.dumps({"problem": "aufgabe", "answer": "loesung"})
    assert tiny.post("/datasets", content=content, headers=JSONL).status_code == 422
    if as_form:
        answer = tiny.post("/datasets", files={"file": ("r.jsonl", content)}, data={"columns": mapping})
    else:
        answer = tiny.post("/datasets", content=content, headers=JSONL, params={"columns": mapping})
    assert answer.status_code == 201, answer.text
    preview = tiny.get(
        f"/datasets/{answer.json()['id']}/preview", params={"model": "tiny-student", "task": "exact"}
    ).json()["data"]
    assert preview[0]["prompts"][0]["text"] == "<user>1+1<assistant>"


@pytest.mark.parametrize(
    "columns",
    ["", "[]", "1", "null", "{", '{"problem": 1}', '{"problem": ""}', '{"nothing": "x"}', "[" * 9000,
     json.dumps({f"id{i}": "x" for i in range(40)})],
)  # fmt: skip
def test_a_wrong_mapping_is_refused(tiny: TestClient, columns: str) -> None:
    answer = tiny.post("/datasets", content=ROWS, headers=JSONL, params={"columns": columns})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "columns")


def test_what_the_check_found_is_not_computed_again(tiny: TestClient, tmp_path: Path) -> None:
    dataset = tiny.post("/datasets", content=ROWS, headers=JSONL).json()["id"]
    for path in (tmp_path / "storage").rglob("*"):
        if path.is_file():
            path.unlink()
    body = job_body(tiny, mode="opsd", teacher=None, dataset=dataset, student="tiny-student")
    for path in ("/jobs", "/jobs?dry_run=true"):
        assert "row 2 has no solution" in tiny.post(path, json=body).json()["error"]["message"]


@pytest.mark.parametrize(("num_mib", "given", "limits"), [(0, 300, (120, 240)), (3, 300, (126, 252)), (3, 5, (5, 10))])
def test_a_small_file_gets_little_time(
    num_mib: int, given: int, limits: tuple[int, int], make_client: MakeClient, sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Any number of rows may be in it."""
    asked: list[ChildLimits] = []

    def command(_request: object, limits: ChildLimits) -> list[str]:
        asked.append(limits)
        return [sys.executable, "-c", "raise SystemExit(1)"]

    monkeypatch.setattr("service.datasets.child.command", command)
    client = make_client(sqlite_url, check_cpu_seconds=given)
    answer = client.post("/datasets", content=b"x" * (num_mib * 2**20 + 1), headers={**AUTHORIZED, **JSONL})
    assert answer.status_code == 422
    assert [(each.cpu_seconds, each.wall_seconds) for each in asked] == [limits]


def test_references_are_judged_in_a_process_of_their_own(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, judge_references=True)
    rows = [{"problem": f"p{i}", "answer": "5", "solution": "so it is \\boxed{7}"} for i in range(3)]
    answer = client.post("/datasets", content="\n".join(map(json.dumps, rows)), headers=JSONL)
    assert answer.status_code == 201, answer.text
    assert [notice["code"] for notice in answer.json()["notices"]] == ["reference_contradicts_solution"]


def test_references_that_were_not_judged_are_a_notice(
    make_client: MakeClient, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.datasets.child.REFERENCES_PROGRAM", "no.such.program")
    client = make_client(sqlite_url, judge_references=True)
    answer = client.post("/datasets", content=b'{"problem": "x", "answer": "1/2"}\n', headers=JSONL)
    assert answer.status_code == 201
    dataset = client.app.state.context.datasets.show("admin", answer.json()["id"])  # type: ignore[attr-defined]
    assert [notice["code"] for notice in dataset.findings["notices"]] == ["references_not_judged"]


def test_a_time_out_of_the_work_in_a_slot_is_not_reported_as_many_uploads() -> None:
    async def work() -> None:
        async with pool().slot("alice"):
            raise TimeoutError("the storage did not answer")

    with pytest.raises(TimeoutError, match="the storage did not answer"):
        asyncio.run(work())


def test_the_permission_to_judge_without_confinement_reaches_the_judge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRD_ALLOW_UNCONFINED_VERIFIERS", "1")
    monkeypatch.setenv("TRD_API_KEY", "a secret")
    program = [sys.executable, "-c", "import os; print(*sorted(n for n in os.environ if n.startswith('TRD_')))"]
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as stdin:
        content, status = asyncio.run(_run(program, stdin, 30.0))
    assert (content.decode().split(), status) == (["TRD_ALLOW_UNCONFINED_VERIFIERS"], 0)
