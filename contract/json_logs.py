"""Log lines as JSON objects, and no secret in them, whatever an error's message says."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
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
    return _without(_written(_secrets(environment)), text)


def _written(secrets: Iterable[str]) -> list[str]:
    """As they are, and as JSON writes them; the longest first, since one may hold another."""
    forms = {form for secret in secrets for form in (secret, _in_json(secret), _in_json(secret, ensure_ascii=False))}
    return sorted(forms, key=len, reverse=True)


def _in_json(text: str, *, ensure_ascii: bool = True) -> str:
    return json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
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
        # A message may be a JSON text itself, which the line's own form escapes once more.
        self._secrets = sorted({_in_json(form) for form in _written(_secrets(environment))}, key=len, reverse=True)

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
        return _without(self._secrets, json.dumps(line, default=str))
