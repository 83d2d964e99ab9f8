"""Lines that programs read, and secrets that nobody does."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from contract.json_logs import JsonFormatter, redacted

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
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401 for sk-big-key-of-a-teacher", "401 for [redacted]"),
        ("postgresql://trd:pass%2Fword-1@db/trd", "postgresql://trd:[redacted]@db/trd"),
        ("password pass/word-1 is wrong", "password [redacted] is wrong"),
        ("redis://:broker-pass@redis", "redis://:[redacted]@redis"),
        ("pepper-pepper", "[redacted]"),
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
