"""Lines that programs read, and secrets that nobody does."""

from __future__ import annotations

import json
import logging
import sys
import threading
from contextvars import copy_context

import pytest

from contract.json_logs import JsonFormatter, log_ids, redacted

ENVIRONMENT = {
    "DATABASE_URL": "postgresql://trd:pass%2Fword-1@db/trd",
    "BROKER_URL": "redis://:broker-pass@redis:6379/0",
    "BIG_API_KEY": "sk-big-key-of-a-teacher",
    "TRD_KEY_PEPPER": "pepper-pepper",
    "SHORT_TOKEN": "abc",
    "HF_TOKEN": 'pa"ss\\word-ä1',
    "AWS_SECRET": "ends-with-\\",
    "PATH": "/usr/bin:/bin",
    "NOT_A_URL": "http://[broken@",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20collector-key,x-tenant=collector-tenant",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401 for sk-big-key-of-a-teacher", "401 for [redacted]"),
        ("postgresql://trd:pass%2Fword-1@db/trd", "postgresql://trd:[redacted]@db/trd"),
        ("password pass/word-1 is wrong", "password [redacted] is wrong"),
        ("redis://:broker-pass@redis", "redis://:[redacted]@redis"),
        ("pepper-pepper", "[redacted]"),
        ("authorization collector-key, collector-tenant", "authorization [redacted], [redacted]"),
        ("abc in /usr/bin:/bin", "abc in /usr/bin:/bin"),
        ('token pa"ss\\word-ä1', "token [redacted]"),
        (json.dumps({"t": 'pa"ss\\word-ä1'}), '{"t": "[redacted]"}'),
        (json.dumps({"t": 'pa"ss\\word-ä1'}, ensure_ascii=False), '{"t": "[redacted]"}'),
        ('"ends-with-\\"', '"[redacted]"'),
    ],
)
def test_secrets_of_the_environment_are_left_out(text: str, shown: str) -> None:
    assert redacted(text, ENVIRONMENT) == shown
    record = logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO", "extra_text": text})
    line = json.loads(JsonFormatter(ENVIRONMENT).format(record))
    assert (line["message"], line["extra_text"]) == (shown, shown)


def test_a_traceback_is_in_its_line_and_holds_no_secret() -> None:
    try:
        raise RuntimeError("sk-big-key-of-a-teacher\nsecond line")
    except RuntimeError:
        record = logging.makeLogRecord({"msg": "it failed", "exc_info": sys.exc_info()})
    text = JsonFormatter(ENVIRONMENT).format(record)
    assert "\n" not in text
    assert "RuntimeError: [redacted]" in json.loads(text)["traceback"]


HOSTILE = [
    'x\n{"at": "now", "level": "error", "message": "forged"}',
    "x\r\n127.0.0.1 GET /admin 200",
    "\x1b[2J\x1b[1;31mred\x1b[0m",
    "\x1b]0;title\x07\x1b]8;;http://evil\x07link",
    "\x9b31m\x85\x8d",  # the same controls in one character each
    "a\u2028b\u2029c\x0bd\x0ce\x1cf\x1dg\x1eh",  # all that splitlines() splits at
    "\x00\x08\x08\x7f",
    "\u202etxt.exe\u2066\u200b",
    '", "request_id": "forged", "x": "\\',
    "\ud800%s%(message)s{}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_forges_a_line_or_drives_a_terminal(text: str) -> None:
    try:
        raise RuntimeError(text)
    except RuntimeError:
        values = {"msg": "%s", "args": (text,), "name": text, "extra_text": text, "exc_info": sys.exc_info()}
    with log_ids(request_id="req_1", job_id=text):
        line = JsonFormatter({}).format(logging.makeLogRecord(values))
    assert all(" " <= character <= "~" for character in line)
    document = json.loads(line)
    assert [document[name] for name in ("message", "logger", "extra_text", "job_id")] == [text] * 4
    assert document["request_id"] == "req_1"
    assert text in document["traceback"]


def test_ids_are_those_of_the_block_and_of_threads_that_it_hands_them_to() -> None:
    def ids() -> dict[str, object]:
        line = json.loads(JsonFormatter({}, worker="w").format(logging.makeLogRecord({})))
        return {name: line[name] for name in line if name in ("worker", "job_id", "attempt")}

    found = []
    with log_ids(job_id="job_1"), log_ids(attempt=2, request_id=None):
        threads = [
            threading.Thread(target=copy_context().run, args=(lambda: found.append(ids()),)),
            threading.Thread(target=lambda: found.append(ids())),
        ]
        for thread in threads:
            thread.start()
            thread.join()
        found.append(ids())
    inside = {"worker": "w", "job_id": "job_1", "attempt": 2}
    assert found == [inside, {"worker": "w"}, inside]
    assert ids() == {"worker": "w"}
