"""What the API reads from its environment, once, when it starts."""

from __future__ import annotations

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from contract.dataset_ref import HubId
from contract.settings import CommaSeparated, DeploymentSettings, Seconds, from_json
from contract.views.keys import KeyScope
from trd_data.readers import MAX_DEPTH
from trd_estimate.hardware import hardware_of_kind

MAX_LIMIT = 10**15
"""No machine has as much of anything."""
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
DeviceKind = Annotated[str, AfterValidator(lambda kind: hardware_of_kind(kind).kind)]
"""A name that `trd_estimate.hardware` knows."""


def _https_or_loopback(url: str) -> str:
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not is_local and not (parts.scheme == "https" and parts.hostname):
        raise ValueError("must be an https address, or http on this machine")
    return url


def _in_a_header(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise ValueError("contains characters that no header can hold; use letters and digits")
    return key


class Settings(DeploymentSettings):
    """One API process."""

    api_key: Annotated[str, Field(min_length=16, max_length=500), AfterValidator(_in_a_header)] | None = Field(
        default=None, repr=False
    )
    """A bootstrap API key with every scope, owned by ``admin``. If unset, the first embedded start makes one and prints
    it."""
    key_pepper: Annotated[str, Field(min_length=16)] | None = Field(default=None, repr=False)
    """Secret of the stored digests of API keys; all API processes must share it. If unset, one is kept in the data
    folder."""
    oidc_issuer: Annotated[str, AfterValidator(_https_or_loopback)] | None = None
    """Issuer of an OpenID Connect provider, whose tokens are accepted as bearer keys: https, or http on this
    machine."""
    oidc_audience: str | None = None
    """The audience that a token must have; required with TRD_OIDC_ISSUER."""
    oidc_owner_claim: str = "sub"
    """The claim that names the owner. Take one that people cannot change themselves, since it decides whose jobs they
    see."""
    oidc_groups_claim: str = "groups"
    """The claim that lists a person's groups."""
    oidc_roles: Annotated[dict[str, KeyScope], NoDecode, BeforeValidator(from_json)] = Field(default={})
    """Who may do what with a token: a JSON object from ``owner:NAME``, ``group:NAME`` or ``*`` to read, submit or
    admin. Somebody with several has them all; somebody without one may do nothing."""
    hub_datasets: Annotated[frozenset[HubId], *CommaSeparated] = frozenset()
    """Comma-separated dataset ids that ``{"hub": …}`` of a job may name."""
    presigned_downloads: bool = False
    """Whether downloads are answered with a redirect to the store, if that is S3. Clients must be able to reach
    AWS_ENDPOINT_URL."""
    max_devices: Limit = 1
    """Most devices that one job may request."""
    device_kind: DeviceKind | None = None
    """Kind of device of the workers, for estimates: cpu, a GPU such as h100 or rtx-4090 (docs/estimate.md), or gpu-24gb
    for another one with 24 GB. If unset, what the workers of the job's queue reported, else cpu."""
    max_queued_jobs: Limit = 1000
    """Most jobs of one owner that wait or run at the same time."""
    max_stored_spec_bytes: Limit = 2**30
    """Most bytes of the specs of one owner's jobs, deleted ones not counted."""
    max_stored_bytes: Limit = 50 * 2**30
    """Most bytes of one owner's uploaded datasets."""
    max_stored_rows: Limit = 20_000_000
    """Most rows of one owner's uploaded datasets."""
    max_requests_per_minute: Limit = 6000
    """Most requests per minute with one key, in one process."""
    max_streams_per_key: Limit = 100
    """Most open event streams of one key, in one process."""
    max_streams: Limit = 2000
    """Most open event streams of all keys, in one process."""
    max_body_bytes: Limit = 2**20
    """Most bytes of a request's JSON body."""
    max_header_bytes: Limit = 2**15
    """Most bytes of a request's headers together. A connection is closed at twice as many."""
    header_seconds: Seconds = 20.0
    """Longest time from a request's first byte, or from the start of the connection, to the end of its headers."""
    max_upload_bytes: Limit = 2**30
    """Most bytes of one uploaded file."""
    max_unpacked_bytes: Limit = 2**32
    """Most bytes that the rows of an uploaded file have as JSON, unpacked: some kilobytes of Parquet or gzip may stand
    for any number of bytes, which a job holds in memory."""
    max_uploads_per_owner: Limit = 4
    """Most uploads and previews of one owner that are in progress at the same time, in one process."""
    max_checks: Limit = 4
    """Most child processes that check uploads or render previews at the same time, in one process. One owner has one
    at a time."""
    check_wait_seconds: Seconds = 120.0
    """Longest time that an upload waits for its check to begin."""
    check_memory_bytes: Annotated[int, Field(ge=2**29, le=MAX_LIMIT)] = 3 * 2**29
    """Address space of the child process that checks an upload, about 400 MiB of which its libraries take."""
    check_cpu_seconds: Limit = 300
    """Most processor time of checking one upload: it gets 120 seconds, and 2 for each MiB of the file."""
    check_seconds: Seconds = 600.0
    """Most time of checking one upload: it gets twice its processor time."""
    preview_cpu_seconds: Limit = 20
    """Processor time of rendering one preview."""
    preview_seconds: Seconds = 30.0
    """Time of rendering one preview."""
    judge_references: bool = True
    """Whether an upload's reference answers are compared with themselves, which takes a second."""
    body_idle_seconds: Seconds = 30.0
    """Longest time without a byte of a request's body; the request is then refused."""
    max_line_bytes: Limit = 2**20
    """Most bytes of one row of an uploaded file."""
    max_rows: Limit = 1_000_000
    """Most rows of an uploaded file, blank lines not counted."""
    max_json_depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)] = 16
    """Deepest nesting of objects and lists in a row."""

    @model_validator(mode="after")
    def _issuer_has_an_audience(self) -> Self:
        if self.oidc_issuer is not None and not self.oidc_audience:
            raise ValueError(
                "TRD_OIDC_AUDIENCE must be set with TRD_OIDC_ISSUER: tokens for other services would be taken"
            )
        bad = [name for name in self.oidc_roles if name != "*" and not re.match(r"(owner|group):.", name)]
        if bad:
            raise ValueError(f"TRD_OIDC_ROLES has {bad[0]!r}; write owner:NAME, group:NAME or *")
        return self

    @property
    def is_embedded(self) -> bool:
        """Whether neither DATABASE_URL nor BROKER_URL is set: the first start then makes the database and a key."""
        return not self.model_fields_set & {"database_url", "broker_url"}
