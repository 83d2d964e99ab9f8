"""Machine, date and versions for the header of a benchmark's result table."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_machine(distributions: Sequence[str]) -> list[str]:
    """Return the date, the processor and the versions, one line each."""
    versions = ", ".join(_name_and_version(name) for name in distributions)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    return [
        f"{today}; {_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB; "
        f"Python {platform.python_version()}, {versions}."
    ]


def _name_and_version(distribution: str) -> str:
    """Return the version; vLLM's CPU build is a distribution with another name."""
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return f"{distribution}-cpu {version(f'{distribution}-cpu')}"


def table(head: str, rows: Iterable[str], *, num_texts: int | None = None) -> list[str]:
    """Return the lines of a Markdown table; the columns after the first `num_texts` have numbers."""
    num_columns = head.count("|") - 1
    num_texts = num_columns if num_texts is None else num_texts
    return [head, "|---" * num_texts + "|---:" * (num_columns - num_texts) + "|", *rows]


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(f"{text}\n")


def status_kib(key: str, pid: int | str = "self") -> int:
    """Return a size of a process from its status, such as VmRSS."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


def _processor() -> str:
    found = dict.fromkeys(("vendor_id", "cpu family", "model", "model name"), "?")
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in found:
            found[key.strip()] = value.strip()
    avx512 = "with" if "avx512f" in Path("/proc/cpuinfo").read_text() else "without"
    return f"{found['model name']} (family {found['cpu family']}, model {found['model']}, {avx512} AVX-512)"
