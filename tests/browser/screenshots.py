"""Makes the pictures in docs/images. ``python -m tests.browser.screenshots``

The jobs of `scenario` are recorded, and their figures drawn; the pair of texts is from a run of the demo's models.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

from client import Client
from client.jobs import require_succeeded
from contract.database import Database
from examples.demo import job_spec
from examples.local_service import local_service
from testbed.make_data import main as make_data
from tests.browser.conftest import FLAGS
from tests.browser.scenario import make_scenario
from tests.migrations.schema import upgrade
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.live_server import live_server

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = chromium.new_page(viewport={"width": 1280, "height": 860})
        take_dashboard(page, Path(folder))
        take_pair(page, Path(folder))
        chromium.close()


def take_dashboard(page: Page, folder: Path) -> None:
    """Write the pictures of recorded jobs."""
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    upgrade(f"sqlite:///{data_dir / 'trd.db'}")
    with (
        live_server(data_dir, TRD_API_KEY=ADMIN_KEY, TRD_JUDGE_REFERENCES="false") as server,
        httpx.Client(base_url=server.url, headers=AUTHORIZED, trust_env=False, timeout=60) as client,
    ):
        jobs = make_scenario(client, Database(f"sqlite:///{data_dir / 'trd.db'}"), data_dir / "storage")
        client.delete(f"/jobs/{jobs.hostile}")
        page.goto(server.url + client.post("/ui/sign-in-links").json()["path"], wait_until="networkidle")
        for name, path, scheme in (
            ("dashboard-jobs", "/", "light"),
            ("dashboard-job", f"/ui/jobs/{jobs.resumed}", "light"),
            ("dashboard-job-dark", f"/ui/jobs/{jobs.finished}", "dark"),
        ):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(server.url + path, wait_until="networkidle")
            page.screenshot(path=IMAGES / f"{name}.png")


def take_pair(page: Page, folder: Path) -> None:
    """Run a small job of the demo, and write the picture of the longest rollout that refining corrected."""
    make_data(["--out", str(folder / "rows"), "--train", "256", "--heldout", "50", "--seed", "0"])
    with local_service(folder / "service", settings={"OMP_NUM_THREADS": "1"}) as service:
        client: Client = service.client
        train, heldout = (client.datasets.upload(folder / "rows" / f"{name}.jsonl").id for name in ("train", "heldout"))
        job = client.jobs.create({**job_spec("trd", train, heldout), "name": "The student misreads #"}).id
        require_succeeded(client.jobs.wait(job))
        headers = {"authorization": f"Bearer {service.key}"}
        with httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=60) as http:
            query = "outcome=fail_to_pass&per_token_kl=true&limit=100"
            found = http.get(f"/jobs/{job}/trajectories?{query}").json()["data"]
            corrected = [row for row in found if row["per_token_kl"] and "\n" in row["rollout"]][:8]
            pair = max(corrected, key=lambda row: len(row["rollout"]))["id"]
            page.emulate_media(color_scheme="light")
            page.set_viewport_size({"width": 1280, "height": 800})
            page.goto(service.url + http.post("/ui/sign-in-links").json()["path"], wait_until="networkidle")
        page.goto(f"{service.url}/ui/jobs/{job}/trajectories/{pair}?outcome=fail_to_pass", wait_until="networkidle")
        page.keyboard.press("p")
        page.wait_for_timeout(300)
        page.evaluate("window.scrollTo(0, 0)")
        page.screenshot(path=IMAGES / "trajectory.png", full_page=True)


if __name__ == "__main__":
    main()
