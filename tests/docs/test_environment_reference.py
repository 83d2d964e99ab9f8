"""docs/environment.md is what its generator writes, and names every variable that is read anywhere."""

from __future__ import annotations

import re

from contract.settings import PACKAGES_DIR
from docs.make_environment import TARGET, document

PACKAGES = ("client", "contract", "service", "worker", "trd_engine", "migrations")
READ_IN_PYTHON = re.compile(
    r'environ(?:\.get\(|\.setdefault\(|\[)\s*"([A-Z][A-Z0-9_]+)"'
    r'|envvar="([A-Z_]+)"|"([A-Z_]+)" in os\.environ'
)
READ_BY_COMPOSE = re.compile(r"\$\{([A-Z_]+)")
SET_BY_COMPOSE = re.compile(r"^\s+([A-Z][A-Z_]+):", re.MULTILINE)
SET_BY_IMAGE = re.compile(r"([A-Z][A-Z_]+)=/data/")
OF_IMAGES = {"CMD", "EXTRA", "POSTGRES_USER", "POSTGRES_DB", "PGDATA", "CMD-SHELL", "ALL"}


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == document(), "run make environment-docs"


def test_every_variable_that_is_read_is_on_the_page() -> None:
    sources = [path.read_text(encoding="utf-8") for name in PACKAGES for path in (PACKAGES_DIR / name).rglob("*.py")]
    compose = (PACKAGES_DIR / "docker-compose.yml").read_text(encoding="utf-8")
    read = {name for text in sources for match in READ_IN_PYTHON.findall(text) for name in match if name}
    image = (PACKAGES_DIR / "docker" / "worker.Dockerfile").read_text(encoding="utf-8")
    read |= set(SET_BY_IMAGE.findall(image))
    read |= {*READ_BY_COMPOSE.findall(compose), *SET_BY_COMPOSE.findall(compose)} - OF_IMAGES
    assert {"TRD_DATA_DIR", "RANK", "TRD_PORT", "AWS_REGION"} <= read, "the patterns find what they are for"
    on_the_page = set(re.findall(r"[A-Z][A-Z0-9_]+", TARGET.read_text(encoding="utf-8")))
    assert read - on_the_page == set()
