"""Headers that never end or never come, and trailers, on raw connections to a real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.service.conftest import ADMIN_KEY
from tests.service.live_server import LiveServer, live_server

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
KEY = f"authorization: Bearer {ADMIN_KEY}\r\n".encode()
POST = (
    b"POST /jobs?dry_run=true HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
)
LIMIT = 2**16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("served") / "data"
    with live_server(folder, TRD_API_KEY=ADMIN_KEY, TRD_HEADER_SECONDS="1", TRD_BODY_IDLE_SECONDS="1") as running:
        yield running


def connect(server: LiveServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def exchange(server: LiveServer, start: bytes, endless: bytes = b"") -> tuple[bytes, int]:
    """Send `start` and then `endless` again and again until the server ends it; return the answer and bytes sent."""
    num_sent = 0
    with connect(server) as connection:
        try:
            connection.sendall(start)
            while endless and num_sent < 2**24:
                connection.sendall(endless)
                num_sent += len(endless)
        except OSError:
            pass  # the server closed the connection
        answer = bytearray()
        try:
            while piece := connection.recv(2**16):
                answer += piece
        except OSError:
            pass  # reset, because bytes that it had not read were left
    return bytes(answer), num_sent


def memory_of(server: LiveServer) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


ENDLESS = {
    "value": (GET + b"x-long: ", b"a" * 2**12),
    "name": (GET, b"a" * 2**12),
    "url": (b"GET /", b"a" * 2**12),
    "query": (b"GET /jobs?after=", b"a" * 2**12),
    "method": (b"", b"A" * 2**12),
    "many": (GET, b"a: b\r\n" * 700),
    "empty values": (GET, b"a:\r\n" * 1000),
    "one byte packets": (GET + b"x-long: ", b"a" * 200),
    "after another request": (GET + b"\r\n" + GET + b"x-long: ", b"a" * 2**12),
    "a trailer": (POST + KEY + b"\r\n2\r\n{}\r\n0\r\nx-long: ", b"a" * 2**12),
    "a chunk's extension": (POST + KEY + b"\r\n2;x=", b"a" * 2**12),
    "line breaks first": (b"", b"\r\n" * 2**11),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_headers_that_never_end_are_cut_off(server: LiveServer, name: str) -> None:
    before = memory_of(server)
    answer, num_sent = exchange(server, *ENDLESS[name])
    # Socket buffers hold what the server never reads.
    assert num_sent < 2**24, "the connection was closed"
    assert memory_of(server) - before < 2**24
    if answer and "after" not in name:
        assert answer.split(b" ")[1] in (b"431", b"400", b"408", b"414"), answer[:100]


def test_headers_just_below_the_limit_are_answered_by_the_application(server: LiveServer) -> None:
    answer, _ = exchange(server, GET + b"connection: close\r\nx-long: " + b"a" * 40_000 + b"\r\n\r\n")
    assert answer.split(b" ")[1] == b"413"
    assert b"payload_too_large" in answer
    answer, _ = exchange(server, GET + b"connection: close\r\n" + b"a: b\r\n" * 300 + b"\r\n")
    assert answer.split(b" ")[1] == b"413"


@pytest.mark.parametrize("start", [b"", b"G", GET, GET + b"x: ", POST], ids=["none", "letter", "some", "half", "post"])
def test_headers_that_do_not_come_are_not_waited_for(server: LiveServer, start: bytes) -> None:
    began = time.monotonic()
    answer, _ = exchange(server, start)
    assert time.monotonic() - began < 4
    assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(b"408")


def test_dripping_bytes_do_not_prolong_it(server: LiveServer) -> None:
    began = time.monotonic()
    with connect(server) as connection, suppress(OSError):  # reset, or a broken pipe
        connection.sendall(GET)
        for _ in range(60):
            time.sleep(0.1)
            connection.sendall(b"x")
    assert time.monotonic() - began < 4


def test_a_connection_may_rest_between_requests_and_a_body_may_take_longer_than_headers(server: LiveServer) -> None:
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(GET + b"\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(2**16)
            time.sleep(1.5)
        connection.sendall(POST + KEY + b"connection: close\r\n\r\n")
        for character in b'{"a":1}':
            time.sleep(0.3)
            connection.sendall(b"1\r\n%c\r\n" % character)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 422")


@pytest.mark.parametrize("pause", [0, 0.2])
@pytest.mark.parametrize("name", [b"authorization", b"Authorization", b" authorization"])
def test_a_key_in_a_trailer_is_not_accepted(server: LiveServer, pause: float, name: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(POST + b"connection: close\r\n\r\n")
        time.sleep(pause)
        trailer = KEY.replace(b"authorization", name)
        connection.sendall(b"2\r\n{}\r\n0\r\n" + trailer + b"\r\n")
        assert connection.recv(2**16).split(b" ")[1] in (b"401", b"400")
    with connect(server) as connection:  # all in one packet
        connection.sendall(POST + b"connection: close\r\n\r\n2\r\n{}\r\n0\r\n" + trailer + b"\r\n")
        assert connection.recv(2**16).split(b" ")[1] in (b"401", b"400")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /jobs?name=" + b"x" * 66_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /" + b"%C2%BA" * 12_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nhost: x\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        GET + b"bad header\r\n\r\n",
        GET + b"a: " + b"b" * LIMIT + b"\r\n\r\n",
    ],
    ids=["address", "path", "no path", "TLS", "nonsense", "version", "length", "lengths", "header", "long header"],
)
def test_what_the_parser_refuses_is_refused_as_documented(server: LiveServer, request_bytes: bytes) -> None:
    answer, _ = exchange(server, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] in (b"400", b"413", b"431")
    assert b"content-type: application/json" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
