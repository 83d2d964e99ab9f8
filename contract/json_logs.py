"""Log lines as JSON objects, with the ids of what they concern, and without the secrets that a message may contain."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

REDACTED = "[redacted]"
MIN_SECRET_CHARACTERS = 8
"""Shorter values are not redacted: they may be part of any word."""

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|PEPPER|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_ids: ContextVar[Mapping[str, str | int]] = ContextVar("log_ids", default={})  # noqa: B039 - never changed in place


@contextmanager
def log_ids(**ids: str | int | None) -> Iterator[None]:
    """Add the ids that are not None to the records of the block, and of threads that have a copy of its context."""
    token = _ids.set({**_ids.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _ids.reset(token)


def logged_id(name: str) -> str | int | None:
    """Return one of the ids that log records get at present."""
    return _ids.get().get(name)


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return `text` without the values of variables that are named like secrets, and without passwords of URLs."""
    return _without(_written(_secrets(environment)), text)


def _written(secrets: Iterable[str]) -> list[str]:
    """Return the secrets as they are and as JSON writes them, longest first, because one may contain another."""
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
        if name.startswith("OTEL_") and name.endswith("_HEADERS"):  # name=value,…: keys of the collector
            words = (word for pair in value.split(",") for word in unquote(pair.partition("=")[2]).split())
            yield from (word for word in words if len(word) >= MIN_SECRET_CHARACTERS)
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
    except ValueError:  # not a URL
        return ""


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, ids, fields of ``extra``, and the traceback.

    JSON escapes line ends and control characters, so that no logged text can forge a line or drive a terminal.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, **fields: str) -> None:
        """`fields` are added to every line."""
        super().__init__()
        self._fields = fields
        # A message may be JSON itself, which is escaped again in the log line.
        self._secrets = sorted({_in_json(form) for form in _written(_secrets(environment))}, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
            **_ids.get(),
            **{name: value for name, value in vars(record).items() if name not in _PLAIN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _without(self._secrets, json.dumps(line, default=str))
