"""The service's address and the key to send: from the environment, or from the file that ``trd up`` writes.

``trd up`` writes its address and key to ``local-service.json`` in the data folder, readable by its user only.
That key is sent to that address and to no other.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from client.errors import SettingsError
from contract.settings import DEFAULT_DATA_DIR, EnvironmentSettings, Seconds, absolute

DEFAULT_URL = "http://127.0.0.1:8000"
LOCAL_SERVICE_FILE = "local-service.json"


class LocalService(BaseModel):
    """The service that ``trd up`` last started on a data folder."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    url: str
    """Its address."""
    api_key: str
    """A key with scope ``admin``."""

    @classmethod
    def of(cls, data_dir: Path) -> Self | None:
        """Return the folder's service; None if there is none, or if another user started it.

        TRD_API_KEY is sent to the address in this file, and anybody may have made the folder. So the file must belong
        to this user, and the address must be on this machine.
        """
        try:
            with (data_dir / LOCAL_SERVICE_FILE).open("rb") as file:
                is_ours = os.fstat(file.fileno()).st_uid == os.getuid()
                local = cls.model_validate_json(file.read())
        except (OSError, ValidationError):
            return None
        return local if is_ours and _is_loopback(local.url) else None

    def save(self, data_dir: Path) -> Path:
        """Write the file that `of` reads; it is never readable by others."""
        path, draft = data_dir / LOCAL_SERVICE_FILE, data_dir / f"{LOCAL_SERVICE_FILE}.{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(self.model_dump(), indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
        return path


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
        is_valid = parsed.scheme in ("http", "https") and parsed.host and "%" not in parsed.host
    except httpx.InvalidURL:
        is_valid = False
    if not is_valid or parsed.query or parsed.fragment or not 0 < (parsed.port or 80) < 2**16:
        raise ValueError(f"is not the address of a service; write it like {DEFAULT_URL}")
    if parsed.userinfo:
        raise ValueError("has a user or password, which would be sent instead of the key; leave them out")
    if parsed.path.rstrip("/").endswith("/v1"):
        raise ValueError("ends with /v1, which is for the openai package; leave it out")
    return str(parsed).rstrip("/")


def _checked_key(api_key: str | None) -> str | None:
    """Return the key without the white space that surrounds it in a file."""
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("contains characters that no key has; copy the key again")
    return key or None


class ClientSettings(EnvironmentSettings):
    """Settings of a client."""

    data_dir: Annotated[Path, AfterValidator(absolute)] = Path(DEFAULT_DATA_DIR)
    """Folder of a local service. It need not be there, nor be readable."""
    url: Annotated[str, AfterValidator(_checked_url)] = DEFAULT_URL
    """Address of the API, without a path. Default: the service that ``trd up`` started on the data folder."""
    api_key: Annotated[str | None, AfterValidator(_checked_key)] = Field(default=None, repr=False)
    """API key, sent as a bearer token; the public probes need none. Default: the key of the local service, if `url` is
    its address."""
    connect_seconds: Seconds = 10.0
    """Longest wait for a connection."""
    read_seconds: Seconds = 60.0
    """Longest pause while waiting for an answer or reading it."""
    upload_seconds: Seconds = 900.0
    """Longest wait for the answer to an upload, which arrives after every row has been checked."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 4
    """Most retries of a request that may safely be sent twice."""

    @model_validator(mode="before")
    @classmethod
    def _complete_from_local_service(cls, given: dict[str, Any]) -> dict[str, Any]:
        local = LocalService.of(absolute(Path(str(given.get("data_dir", DEFAULT_DATA_DIR)).strip())))
        if local is None:
            return given
        is_its_address = given.get("url", local.url).strip().rstrip("/") == local.url
        return {"url": local.url, **({"api_key": local.api_key} if is_its_address else {}), **given}

    @classmethod
    def from_environment(cls, **given: Any) -> Self:
        """Return the settings; values of `given` that are not None override the environment. Raises `SettingsError`."""
        try:
            return super().from_environment(**{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            raise SettingsError(str(error), hint="correct the variable, or the argument given instead") from None

    @property
    def is_loopback(self) -> bool:
        """Whether the service is on this machine, so that no proxy is used."""
        return _is_loopback(self.url)


def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    except ValueError:
        return False
