"""A real Chromium, and a real server with jobs in every state."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from contract.database import Database
from tests.browser.scenario import Scenario, make_scenario
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.live_server import live_server

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
"""Without the sandbox, which a container's root has no rights for: the pages are ours."""

expect.set_options(timeout=20_000)  # pages ask every two seconds, and other tests run beside these


@dataclass(frozen=True)
class Site:
    """The server, with its jobs."""

    url: str
    client: httpx.Client
    database: Database
    jobs: Scenario
    faults: list[str] = field(default_factory=list)
    """What pages wrote to the console as errors, and requests to other hosts."""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite_file: Path) -> Iterator[Site]:
    """One server for all tests of pages."""
    data_dir = tmp_path_factory.mktemp("site") / "data"
    data_dir.mkdir(mode=0o700)
    shutil.copyfile(migrated_sqlite_file, data_dir / "trd.db")
    with live_server(data_dir, TRD_API_KEY=ADMIN_KEY, TRD_JUDGE_REFERENCES="false") as server:
        database = Database(f"sqlite:///{data_dir / 'trd.db'}")
        with httpx.Client(base_url=server.url, headers=AUTHORIZED, trust_env=False, timeout=60) as client:
            yield Site(server.url, client, database, make_scenario(client, database, data_dir / "storage"))
        database.dispose()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. For one file: while Playwright runs, its event loop does, and asyncio.run refuses to."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


def watched(context: BrowserContext, site: Site) -> Page:
    """Open a tab whose faults are collected."""

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            site.faults.append(f"{message.text} at {message.location}")

    def on_request(request: Request) -> None:
        if not request.url.startswith((site.url, "data:", "blob:")):
            site.faults.append(f"a request to {request.url}")

    page = context.new_page()
    page.set_default_timeout(15_000)
    page.on("console", on_console)
    page.on("pageerror", lambda error: site.faults.append(f"uncaught: {error}"))
    page.on("request", on_request)
    return page


@pytest.fixture
def visitor(browser: Browser, site: Site) -> Iterator[Page]:
    """A tab without a session."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield watched(context, site)
    context.close()


@pytest.fixture
def tab(visitor: Page, site: Site) -> Iterator[Page]:
    """A tab that is signed in. The test fails if a page had an error or asked another host."""
    site.faults.clear()
    visitor.goto(site.url + site.client.post("/ui/sign-in-links").json()["path"])
    yield visitor
    assert site.faults == []
