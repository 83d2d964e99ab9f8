"""``registry_audit.py FILE [DECIDED …]``: ask the package registry for known vulnerabilities where OSV does not answer.

A registry tells them for a release, or at least for a project's newest release, by PyPI's JSON interface. A pin of an
older release that it does not tell about is named as not audited. Exits with 0 if all pins were audited, with 3 if some
were not, and with 1 if one has a vulnerability that is not among the decided ones. REGISTRY_URL names another registry.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pip._internal.models.index import PyPI

REGISTRY = os.environ.get("REGISTRY_URL", PyPI.pypi_url)


def findings(pin: tuple[str, str]) -> list[set[str]] | None:
    """Return the known vulnerabilities of a pinned release, each by all its ids; None without an answer."""
    name, version = pin
    for place in (f"{name}/{version}", name):
        try:
            with urllib.request.urlopen(f"{REGISTRY}/{place}/json", timeout=20) as answer:
                project = json.load(answer)
            if project["info"]["version"] == version:
                known = [entry for entry in project["vulnerabilities"] if not entry.get("withdrawn")]
                return [{entry["id"], *entry.get("aliases", ())} for entry in known]
        except (OSError, ValueError, KeyError, TypeError):  # no answer, or none in PyPI's form
            continue
    return None


def main(file: str, *decided: str) -> int:
    """Print what was found, and return the exit code."""
    pins = re.findall(r"^([\w.-]+)==([^\s;+]+)", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    with ThreadPoolExecutor(8) as threads:
        answers = list(zip(pins, threads.map(findings, pins), strict=True))
    is_open = False
    for (name, version), known in answers:
        for ids in known or []:
            if not ids & set(decided):
                print(f"{file}: {name} {version} has {', '.join(sorted(ids))}, without a decision", file=sys.stderr)
                is_open = True
    silent = [f"{name} {version}" for (name, version), known in answers if known is None]
    print(f"{file}: the registry answered for {len(pins) - len(silent)} of {len(pins)} pins")
    if silent:
        print(f"{file}: NOT AUDITED: {', '.join(silent)}", file=sys.stderr)
    return 1 if is_open else 3 if silent else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
