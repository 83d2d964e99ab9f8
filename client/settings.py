"""Where the service is and which key to send: from the environment, or from what ``trd up`` left behind.

``trd up`` writes its address and key to ``local-service.json`` in the data folder, readable by its user alone.
That key goes to that address and to no other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.errors import SettingsError
from contract.database_url import DEFAULT_DATA_DIR

DEFAULT_URL = "http://127.0.0.1:8000"
LOCAL_SERVICE_FILE = "local-service.json"

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class LocalService(BaseModel):
    """The service that was last started on a data folder by ``trd up``."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    url: str
    """Where it listens."""
    api_key: str
    """An admin's key."""

    @classmethod
    def of(cls, data_dir: Path) -> Self | None:
        """What the folder says; None where nothing was started there, or another user did.

        A folder may come from anybody, and TRD_API_KEY goes where its file says: only this user's own file is
        believed, and only an address on this machine.
        """
        try:
            with (data_dir / LOCAL_SERVICE_FILE).open("rb") as file:
                is_ours = os.fstat(file.fileno()).st_uid == os.getuid()
                local = cls.model_validate_json(file.read())
        except (OSError, ValidationError):
            return None
        return local if is_ours and _is_loopback(local.url) else None

    def save(self, data_dir: Path) -> Path:
        """Write it where `of` looks; nobody else may read it, from its first byte on."""
        path, draft = data_dir / LOCAL_SERVICE_FILE, data_dir / f"{LOCAL_SERVICE_FILE}.{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(self.model_dump(), indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
        return path


class ClientSettings(BaseModel):
    """Everything a client needs to know before its first request."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str = DEFAULT_URL
    """Address of the API, without a path. ``TRD_URL``."""
    api_key: str | None = None
    """Sent as a bearer key; the public probes need none. ``TRD_API_KEY``."""
    connect_seconds: Seconds = 10.0
    """Longest wait for a connection."""
    read_seconds: Seconds = 60.0
    """Longest silence while an answer is read, or waited for."""
    upload_seconds: Seconds = 900.0
    """Longest wait for the answer to an upload: every row is checked first."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 4
    """How often a request is sent again, where doing it twice does no harm."""

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, *, url: str | None = None, api_key: str | None = None
    ) -> Self:
        """`url` and `api_key` where given, else the environment's, else those of the local service.

        Raises `SettingsError`.
        """
        data_dir = Path(environment.get("TRD_DATA_DIR") or DEFAULT_DATA_DIR)
        local = LocalService.of(data_dir)
        url = url or environment.get("TRD_URL") or (local.url if local is not None else DEFAULT_URL)
        url = checked_url(url)
        api_key = api_key or environment.get("TRD_API_KEY") or None
        if api_key is None and local is not None and local.url == url:
            api_key = local.api_key
        return cls(url=url, api_key=_checked_key(api_key))

    @property
    def is_loopback(self) -> bool:
        """True where the service is on this machine: no proxy stands between."""
        return _is_loopback(self.url)


def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    except ValueError:
        return False


def _checked_key(api_key: str | None) -> str | None:
    """The key without what surrounds it in a file; raises `SettingsError`, which never shows it."""
    key = api_key.strip() if api_key is not None else None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise SettingsError("TRD_API_KEY: holds characters that no key has", hint="copy the key once more")
    return key or None


def checked_url(url: str) -> str:
    """The address without a trailing slash; raises `SettingsError` where it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError(f"TRD_URL = {url}: is no address of a service", hint=f"write it like {DEFAULT_URL}")
    return url.rstrip("/")
