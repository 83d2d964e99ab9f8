"""Makes the pictures in docs/images, of the jobs of `scenario`. ``python -m tests.browser.screenshots``"""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

from contract.database import Database
from tests.browser.conftest import FLAGS
from tests.browser.scenario import make_scenario
from tests.migrations.schema import upgrade
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.live_server import live_server

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        data_dir.mkdir(mode=0o700)
        upgrade(f"sqlite:///{data_dir / 'trd.db'}")
        with (
            live_server(data_dir, TRD_API_KEY=ADMIN_KEY, TRD_JUDGE_REFERENCES="false") as server,
            httpx.Client(base_url=server.url, headers=AUTHORIZED, trust_env=False, timeout=60) as client,
            sync_playwright() as playwright,
        ):
            jobs = make_scenario(client, Database(f"sqlite:///{data_dir / 'trd.db'}"), data_dir / "storage")
            client.delete(f"/jobs/{jobs.hostile}")
            chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            page = chromium.new_page(viewport={"width": 1280, "height": 860})
            page.goto(server.url + client.post("/ui/sign-in-links").json()["path"], wait_until="networkidle")
            for name, path, scheme in (
                ("dashboard-jobs", "/", "light"),
                ("dashboard-job", f"/ui/jobs/{jobs.resumed}", "light"),
                ("dashboard-job-dark", f"/ui/jobs/{jobs.finished}", "dark"),
            ):
                page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                page.goto(server.url + path, wait_until="networkidle")
                page.screenshot(path=IMAGES / f"{name}.png")
            chromium.close()


if __name__ == "__main__":
    main()
