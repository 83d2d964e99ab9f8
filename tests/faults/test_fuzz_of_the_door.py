"""Mutations of all that comes in from outside: no process dies, no 500, no growth of memory, nothing left behind.

Each kind has `TRD_FUZZ_INPUTS` seeded inputs (4,000 by default), read by the same code as in the children of the
service, many in one process; some more go through a real server. `make fuzz` tries many more.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import random
import resource
import signal
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import redis

from contract.job_spec import JobSpec
from service.bodies import parse_object, validated
from service.datasets.multipart import receive_form
from service.errors import InvalidRequestError
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.live_server import LiveServer, live_server
from tests.worker.test_malformed_messages import NO_VALUES, QUEUE, message, worker
from tests.worker.workbench import eventually
from trd_data.check import check_file
from trd_data.child import reply_to
from trd_data.readers import RowLimits
from worker.doorbells import NOT_A_DOORBELL, _job_id

pytestmark = pytest.mark.extended

NUM_INPUTS = int(os.environ.get("TRD_FUZZ_INPUTS", "4000"))
NUM_BY_HTTP = max(60, NUM_INPUTS // 150)
SECONDS_PER_INPUT = 5
MEMORY_BYTES = 3 * 2**29
GROWTH_BYTES = 2**26
LIMITS = RowLimits(max_row_bytes=2**20, max_rows=10_000, max_depth=16, max_unpacked_bytes=2**26)

ROWS = [
    {"problem": "1 + 1", "answer": "2", "solution": "so \\boxed{2}", "id": "a"},
    {"question": "2?", "choices": ["x", "y"], "answer": 1},
    {"instruction": "add", "input": "1, 2", "output": "#### 3"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\\boxed{1}"}]},
    {"problem": "é", "answer": 1.5, "tests": [{"input": "1", "output": "2"}], "metadata": {"a": {"b": [1, None]}}},
]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS * 3)
TOKENS = [
    *(b"null", b"NaN", b"1e400", b"-0", b"9" * 400, b'"', b"\\", b"{", b"[", b"[" * 200, b"]}", b",,", b"\\ud800"),
    *(b"\\u0000", b"\0", b"\xff\xfe", b"\n\n\n", b"\r", b"true", b'{"a":', b"\xe2\x80\xae", b"PAR1", b"\x1f\x8b", b""),
]


def mutated(content: bytes, generator: random.Random, tokens: list[bytes]) -> bytes:
    """Return `content` after one to six random changes."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(len(changed) + 1)
        length = generator.choice((1, 1, 2, 4, 16, 100))
        kind = generator.randrange(7)
        if kind == 0 and changed:
            changed[place % len(changed)] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[place : place + length] = generator.randbytes(length)
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = changed[place : place + length] * generator.choice((1, 3, 50))
        elif kind == 4:
            changed[place : place + generator.choice((0, length))] = generator.choice(tokens)
        elif kind == 5:
            number = generator.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**16))
            changed[place : place + 4] = struct.pack("<i", number)
        else:
            del changed[place + generator.randrange(1, 2 * len(content)) :]
    return bytes(changed)


def inputs(content: Callable[[random.Random], bytes], tokens: list[bytes], count: int) -> Iterator[bytes]:
    for number in range(count):
        generator = random.Random(number)
        yield mutated(content(generator), generator, tokens)


def parquet(generator: random.Random) -> bytes:
    buffer = io.BytesIO()
    columns = {
        "problem": [f"{i} + {i}" for i in range(4)],
        "answer": [str(2 * i) for i in range(4)],
        "extra": pa.array([[{"a": i, "b": "x"}] for i in range(4)]),
        "at": pa.array([0, 1, None, 2], pa.timestamp("us")),
    }
    options = {"compression": generator.choice(("snappy", "zstd", "gzip", "none")), "row_group_size": 3}
    pq.write_table(pa.table(columns), buffer, use_dictionary=generator.random() < 0.5, **options)
    return buffer.getvalue()


FILES: dict[str, Callable[[random.Random], bytes]] = {
    "JSON Lines": lambda generator: LINES,
    "a JSON array": lambda generator: json.dumps(ROWS, indent=generator.choice((None, 1))).encode(),
    "CSV": lambda generator: b'problem,answer,solution\n1 + 1,2,"a ""b"", c"\n"x\ny",3,\n' * 3,
    "zstd": lambda generator: pa.compress(LINES, codec="zstd", asbytes=True),
    "gzip": lambda generator: gzip.compress(LINES, compresslevel=generator.choice((0, 6)), mtime=0),
    "Parquet": parquet,
}


def check_in_forks(contents: Iterator[bytes], lost_bytes: int) -> tuple[Counter[str], int]:
    """Check files in a separate process; return how often each reply came, and how many files ended the process.

    Another process then continues with the next file. Fails if a process grows by more than `lost_bytes` a file, or if
    a file takes too long.
    """
    files, done, replies = list(contents), 0, Counter[str]()
    num_ended = 0
    while done < len(files):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                _check_all(files[done:], writer, lost_bytes)
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            for line in lines:
                replies[line.strip()] += 1
                done += 1
        _, status = os.waitpid(pid, 0)
        assert replies["grown"] == 0, "the process grew"
        assert os.waitstatus_to_exitcode(status) != -signal.SIGALRM, f"file {done} takes too long"
        if done < len(files):
            num_ended += 1
            done += 1
    return replies, num_ended


def _check_all(files: list[bytes], writer: int, lost_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_size() + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # libraries that abort say so
    size = 0
    for number, content in enumerate(files):
        signal.alarm(SECONDS_PER_INPUT)
        reply = reply_to(lambda content=content: asdict(check_file(io.BytesIO(content), LIMITS, None)), MEMORY_BYTES)
        json.dumps(reply)
        if number == 1000:
            size = _resident()
        is_measured = number > 1000 and number % 1000 == 0
        is_grown = is_measured and _resident() - size > GROWTH_BYTES + number * lost_bytes
        os.write(writer, b"grown\n" if is_grown else next(iter(reply)).encode() + b"\n")


def _size() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("name", FILES)
def test_files(name: str) -> None:
    # Arrow 26 frees no context of a damaged zstd stream, some 4 KiB; a child reads one file.
    replies, num_ended = check_in_forks(inputs(FILES[name], TOKENS, NUM_INPUTS), 8192 if name == "zstd" else 0)
    assert set(replies) <= {"found", "unreadable", "too_large", "wrong_row"}, replies
    assert replies["found"] > NUM_INPUTS // 100, "not everything is refused at once"
    # Arrow aborts for some files; that is what the children are for.
    assert num_ended == 0 or (name == "Parquet" and num_ended < NUM_INPUTS // 100), num_ended


SPEC = json.dumps(
    {
        "mode": "trd", "student": "tiny-student", "teacher": "tiny-teacher", "dataset": {"generator": "gcd", "size": 9},
        "task": "exact", "loss": {"divergence": "forward_kl", "support": "top_k", "teacher_top_k": 8},
        "sampling": {"temperature": 0.5, "max_new_tokens": 64}, "refine": {"max_new_tokens": 64},
        "lora": {"rank": 8, "alpha": 16, "target_modules": "auto"}, "optim": {"learning_rate": 1e-4, "batch_size": 8},
        "evaluation": {"holdout": 0.1, "k": 2}, "tags": ["a"], "metadata": {"b": "c"}, "seed": 1, "name": "n",
    }
).encode()  # fmt: skip


def test_specs() -> None:
    outcomes = Counter[bool]()
    for content in inputs(lambda generator: SPEC, TOKENS, NUM_INPUTS):
        try:
            spec = validated(JobSpec, parse_object(content))
            json.dumps(spec.resolved().model_dump(mode="json"), allow_nan=False)
            outcomes[True] += 1
        except InvalidRequestError:
            outcomes[False] += 1
    assert min(outcomes.values()) > NUM_INPUTS // 1000


FORM = (
    b'--line\r\ncontent-disposition: form-data; name="columns"\r\n\r\n{"problem": "question"}\r\n'
    b'--line\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\ncontent-type: application/jsonl\r\n'
    b"\r\n" + LINES + b"\r\n--line--\r\n"
)
FORM_TOKENS = [
    *TOKENS,
    b"--line",
    b"\r\n--line--\r\n",
    b"\r\n\r\n",
    b"filename*=utf-8''%ff",
    b'name="',
    b"; " * 99,
    b":",
]


def test_forms() -> None:
    async def receive(content: bytes, content_type: str, size: int) -> int:
        received = bytearray()

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(content), size):
                yield content[start : start + size]

        async def take(piece: bytes) -> None:
            received.extend(piece)

        await receive_form(content_type, pieces(), take)
        return len(received)

    async def receive_all() -> Counter[bool]:
        outcomes = Counter[bool]()
        for number, content in enumerate(inputs(lambda generator: FORM, FORM_TOKENS, NUM_INPUTS)):
            generator = random.Random(number)
            head = "multipart/form-data; boundary=line"
            if generator.random() < 0.1:
                head = mutated(head.encode(), generator, FORM_TOKENS).decode("latin-1")
            try:
                assert await receive(content, head, generator.choice((7, 100, 10_000))) <= len(content)
                outcomes[True] += 1
            except InvalidRequestError:
                outcomes[False] += 1
        return outcomes

    assert min(asyncio.run(receive_all()).values()) > NUM_INPUTS // 1000


def test_broker_messages(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    """What is no doorbell goes through a worker; it takes a second for one, so that those are only parsed."""
    num_doorbells, dropped = 0, []
    values = [value.encode() for value in NO_VALUES]
    tokens = [*TOKENS, b"trd.run_job", b"job_", b"headers", b"base64", b"0", b"[]", b"{}", *values]
    for content in inputs(lambda generator: message().encode(), tokens, NUM_INPUTS):
        try:
            job_id = _job_id(json.loads(content.decode(errors="replace")))
        except NOT_A_DOORBELL:
            dropped.append(content)
            continue
        num_doorbells += 1
        assert job_id.startswith("job_")
        assert len(job_id) < 100
    assert num_doorbells > NUM_INPUTS // 1000

    def num_logged(words: str) -> int:
        return (tmp_path / "worker.log").read_text(errors="replace").count(words)

    with worker(sqlite_url, redis_url, tmp_path) as process, redis.Redis.from_url(redis_url) as broker:
        sizes = []
        for part in (dropped[:1000], dropped[1000:]):
            for content in part:
                broker.lpush(QUEUE, content)
            broker.lpush(QUEUE, message())
            taken = len(sizes) + 1
            eventually(lambda n=taken: num_logged("succeeded in") == n or process.poll() is not None, seconds=600)
            assert process.poll() is None, (tmp_path / "worker.log").read_text(errors="replace")[-2000:]
            sizes.append(_resident(process.pid))
        assert num_logged("no doorbell was dropped") == len(dropped)
        assert broker.keys("*unacked*") == []
        assert sizes[1] - sizes[0] < GROWTH_BYTES
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left - {"scratch"} == {"worker.log", "database", "database/trd.db"}, "scratch is empty"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    environment = {"TRD_JUDGE_REFERENCES": "false", "TRD_MAX_JSON_DEPTH": "16"}
    with live_server(tmp_path / "data", TRD_API_KEY=ADMIN_KEY, **environment) as running:
        yield running


def test_a_server_answers_and_keeps_nothing_but_what_it_accepted(server: LiveServer, tmp_path: Path) -> None:
    statuses = Counter[int]()
    with httpx.Client(base_url=server.url, headers=AUTHORIZED, timeout=60) as client:
        before = 0
        for number in range(NUM_BY_HTTP):
            generator = random.Random(number)
            name = generator.choice(list(FILES))
            content = mutated(FILES[name](generator), generator, TOKENS)
            form = mutated(FORM, generator, FORM_TOKENS)
            spec = mutated(SPEC, generator, TOKENS)
            answers = [
                client.post("/datasets", content=content, headers={"content-type": "application/jsonl"}),
                client.post("/datasets", content=form, headers={"content-type": "multipart/form-data; boundary=line"}),
                client.post("/jobs?dry_run=true", content=spec, headers={"content-type": "application/json"}),
            ]
            for answer in answers:
                statuses[answer.status_code] += 1
                assert answer.status_code in (200, 201, 400, 413, 415, 422), answer.text
            before = before or _resident(server.process.pid)
        accepted = [dataset["id"] for dataset in client.get("/datasets", params={"limit": 100}).json()["data"]]
        stored = [path.name for path in (tmp_path / "data" / "storage" / "datasets").iterdir()]
        assert len(stored) == statuses[201]
        assert set(accepted) <= set(stored)
    assert _resident(server.process.pid) - before < GROWTH_BYTES
    assert server.process.poll() is None
    assert not Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().strip()
    left = [path for path in (tmp_path / "data").iterdir() if path.name.startswith("tmp")]
    assert left == []
    assert statuses[201] > 0
    assert statuses[422] > 0
