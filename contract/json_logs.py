"""Log lines as JSON objects, and no secret in them, whatever an error's message says."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

REDACTED = "[redacted]"
MIN_SECRET_CHARACTERS = 8
"""What is shorter may be a part of any word."""

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|PEPPER|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without the values of variables that are named like secrets, and without the passwords of addresses."""
    for secret in _secrets(environment):
        text = text.replace(secret, REDACTED)
    return text


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        found = value if _SECRET_NAME.search(name) else _password(value)
        if len(found) >= MIN_SECRET_CHARACTERS:
            yield found
            if "%" in found:
                yield unquote(found)


def _password(value: str) -> str:
    if "://" not in value or "@" not in value:
        return ""
    try:
        return urlsplit(value).password or ""
    except ValueError:  # no address after all
        return ""


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, what came as ``extra``, and the traceback."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._secrets = dict.fromkeys(_secrets(environment))

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _PLAIN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(line, default=str)
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text
