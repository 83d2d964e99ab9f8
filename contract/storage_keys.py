"""Where files are stored: the store's URL, and the keys in it, which are relative, with forward slashes.

Imports no store's code: the client's settings check the URL too.
"""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator

_FORMS = "give a folder, file:///folder, s3://bucket/prefix or memory:///"
_DURATION = re.compile(
    r"(\d+(\.\d+)? *(ms|msec|millis|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?) *)+", re.ASCII
)
"""What the store reads as one, but for units that nobody means here."""

DATASETS_PREFIX = "datasets"
JOBS_PREFIX = "jobs"
"""Prefix of all jobs' folders, which are named by the jobs' ids."""


def dataset_key(dataset_id: str) -> str:
    """Return the key of an uploaded dataset's validated rows."""
    return f"{DATASETS_PREFIX}/{dataset_id}/rows.jsonl"


def job_prefix(job_id: str) -> str:
    """Return the prefix of all files of a job, whichever attempt stored them."""
    return f"{JOBS_PREFIX}/{job_id}"


def checkpoint_prefix(job_id: str, attempt: int, step: int) -> str:
    """Return a checkpoint's prefix. The attempt is in it, so that a superseded attempt overwrites nothing."""
    return f"{job_prefix(job_id)}/attempt-{attempt:04d}/step-{step:08d}"


def attempt_number(prefix: str) -> int:
    """Return the number of the attempt that a prefix of `checkpoint_prefix` names; raise ValueError for others."""
    return int(prefix.split("/")[2].removeprefix("attempt-"))


def checked_storage_url(url: str) -> str:
    """Return `url` unchanged; raises ValueError if no store can be opened with it and the AWS_* variables."""
    scheme, place = parse_storage_url(url)
    if scheme == "file" and not place:
        raise ValueError(f"names no folder; {_FORMS}")
    if scheme == "s3":
        if "@" in place:
            raise ValueError("the URL takes no credentials; put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]+[a-z0-9](/[^/?#]+)*/?", place):
            raise ValueError(f"s3://{place} is not a bucket and a prefix; {_FORMS}")
        _check_aws_variables()
    elif scheme not in ("file", "memory"):
        raise ValueError(f"there is no store of the kind {scheme}://; {_FORMS}")
    return url


def _check_aws_variables() -> None:
    """Raise ValueError that names a variable which the store could not use, or would ignore."""
    for name in os.environ:
        if name.startswith("AWS_") and not os.environ[name]:
            raise ValueError(f"{name} is empty; give it a value, or unset it")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "https://")
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"AWS_ENDPOINT_URL = {endpoint}: this is not a URL; write it like https://s3.example.com")
    if not _DURATION.fullmatch(timeout := os.environ.get("AWS_TIMEOUT", "30s")):
        raise ValueError(f"AWS_TIMEOUT = {timeout}: this is not a duration; write it like 30s")
    flag = os.environ.get("AWS_ALLOW_HTTP", "false").lower()
    allows_http = flag in ("1", "true", "yes", "y", "on")
    if not allows_http and flag not in ("0", "false", "no", "n", "off"):
        raise ValueError(f"AWS_ALLOW_HTTP = {flag}: write true or false")
    if endpoint.startswith("http://") and not allows_http:
        raise ValueError(
            f"AWS_ENDPOINT_URL = {endpoint}: plain http lets others read the files on their way; use https, or set "
            "AWS_ALLOW_HTTP=true"
        )


StorageUrl = Annotated[str, AfterValidator(checked_storage_url)]
"""Type of a settings field."""


def parse_storage_url(url: str) -> tuple[str, str]:
    """Return the kind of store and its place; a plain path is a folder."""
    scheme, separator, place = url.partition("://")
    return (scheme, place) if separator else ("file", url)
