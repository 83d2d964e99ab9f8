"""Every page in a real browser: without a fault, without a barrier, and with hostile text as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from contract.job_state import JobStatus
from contract.tables import MetricPoint
from tests.browser.conftest import Site
from tests.browser.scenario import HOSTILE, MODELS, add_curves
from tests.service.conftest import ADMIN_KEY
from tests.service.records import ROWS, set_job, submit
from tests.service.test_access import new_key

pytestmark = pytest.mark.extended

PAGES: dict[str, Callable[[Site], str]] = {
    "jobs": lambda site: "/",
    "no jobs": lambda site: "/?tag=none",
    "finished": lambda site: f"/ui/jobs/{site.jobs.finished}",
    "failed": lambda site: f"/ui/jobs/{site.jobs.failed}",
    "resumed": lambda site: f"/ui/jobs/{site.jobs.resumed}",
    "running": lambda site: f"/ui/jobs/{site.jobs.running}",
    "queued": lambda site: f"/ui/jobs/{site.jobs.queued}",
    "diagnosis": lambda site: f"/ui/jobs/{site.jobs.finished}/diagnosis",
    "no diagnosis": lambda site: f"/ui/jobs/{site.jobs.queued}/diagnosis",
    "trajectories": lambda site: f"/ui/jobs/{site.jobs.finished}/trajectories",
    "no trajectories": lambda site: f"/ui/jobs/{site.jobs.queued}/trajectories",
    "trajectory": lambda site: f"/ui/jobs/{site.jobs.finished}/trajectories/0:0",
    "samples": lambda site: f"/ui/jobs/{site.jobs.finished}/samples",
    "no samples": lambda site: f"/ui/jobs/{site.jobs.queued}/samples",
    "checkpoints": lambda site: f"/ui/jobs/{site.jobs.finished}/checkpoints",
    "no checkpoints": lambda site: f"/ui/jobs/{site.jobs.queued}/checkpoints",
    "try": lambda site: f"/ui/jobs/{site.jobs.finished}/checkpoints/latest/try",
    "events": lambda site: f"/ui/jobs/{site.jobs.finished}/events",
    "spec": lambda site: f"/ui/jobs/{site.jobs.finished}/spec",
    "compare": lambda site: f"/ui/compare?job={site.jobs.finished}&job={site.jobs.failed}",
    "nothing to compare": lambda site: "/ui/compare",
    "new job": lambda site: f"/ui/new?from_job={site.jobs.finished}",
    "system": lambda site: "/ui/system",
}


def serious(page: Page) -> list[Any]:
    """Return the findings that axe-core calls serious, with the elements."""
    found = Axe().run(page).response["violations"]
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_fault_and_no_barrier_in_light_dark_and_phone_width(tab: Page, site: Site, name: str) -> None:
    for scheme, width in (("light", 1280), ("dark", 390)):
        tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        tab.set_viewport_size({"width": width, "height": 844})
        tab.goto(site.url + PAGES[name](site), wait_until="networkidle")
        assert tab.locator("h1").count() == 1
        if scheme == "dark" or name in ("jobs", "finished"):  # axe takes seconds
            assert serious(tab) == []
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


def test_signing_in_and_out(visitor: Page, site: Site) -> None:
    visitor.goto(f"{site.url}/ui/jobs/{site.jobs.finished}/spec")
    expect(visitor.get_by_role("heading", name="Sign in")).to_be_visible()
    assert serious(visitor) == []
    visitor.keyboard.type("trd_wrong")  # the field has the focus
    visitor.keyboard.press("Enter")
    expect(visitor.get_by_role("alert")).to_contain_text("unknown or revoked")
    visitor.get_by_label("API key").fill(ADMIN_KEY)
    visitor.keyboard.press("Enter")
    expect(visitor).to_have_url(f"{site.url}/ui/jobs/{site.jobs.finished}/spec")
    visitor.get_by_role("button", name="Sign out").click()
    expect(visitor).to_have_url(f"{site.url}/ui/sign-in")
    visitor.goto(site.url)
    expect(visitor.get_by_role("heading", name="Sign in")).to_be_visible()


def test_another_owners_job_is_not_there(visitor: Page, site: Site) -> None:
    key = new_key(site.client, "stranger", "admin")["authorization"].removeprefix("Bearer ")  # type: ignore[arg-type]
    visitor.goto(f"{site.url}/ui/sign-in")
    visitor.get_by_label("API key").fill(key)
    visitor.keyboard.press("Enter")
    expect(visitor.get_by_text("No jobs yet")).to_be_visible()
    with httpx.Client(base_url=site.url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as own:
        submit(own, **MODELS, name="The first of all")
    expect(visitor.get_by_text("The first of all")).to_be_visible()
    for path in ("", "/changes", "/diagnosis", "/checkpoints", "/checkpoints/latest/try", "/events", "/spec"):
        response = visitor.goto(f"{site.url}/ui/jobs/{site.jobs.finished}{path}")
        assert response is not None
        assert response.status == 404
    expect(visitor.get_by_role("heading", name="Not found")).to_be_visible()


@pytest.mark.parametrize(
    "path", ["/", "/ui/jobs/{}", "/ui/jobs/{}/events", "/ui/jobs/{}/spec", "/ui/jobs/{}/diagnosis"]
)
def test_hostile_text_stays_text(tab: Page, site: Site, path: str) -> None:
    tab.goto(site.url + path.format(site.jobs.hostile), wait_until="networkidle")
    expect(tab.get_by_text(HOSTILE, exact=False).first).to_be_visible()
    assert tab.evaluate("document.querySelectorAll('img[src=x], main script').length") == 0
    assert "owned" not in tab.evaluate("document.title.replace(/<script>.*/, '')")
    assert "{{ 7 * 7 }}" in tab.locator("main").inner_text()


def test_the_list_is_filtered_by_name_and_day(tab: Page, site: Site) -> None:
    tab.goto(site.url)
    tab.get_by_label("Name", exact=True).fill("THREE rounds")
    tab.get_by_label("From", exact=True).fill("2026-01-01")
    tab.get_by_role("button", name="Filter").click()
    expect(tab).to_have_url(re.compile("name=THREE"))
    expect(tab.locator("#jobs tbody tr")).to_have_count(1)
    expect(tab.locator(f"#{site.jobs.running}")).to_be_visible()
    tab.get_by_label("to", exact=True).fill("2026-01-02")
    tab.get_by_role("button", name="Filter").click()
    expect(tab.get_by_text("No job matches")).to_be_visible()


def test_the_list_follows_the_jobs_without_a_reload(tab: Page, site: Site) -> None:
    tab.goto(site.url)
    tab.evaluate("window.isSameDocument = true")
    row = tab.locator(f"#{site.jobs.running}")
    before = row.get_attribute("data-version")
    row.get_by_role("checkbox").focus()
    set_job(site.database, site.jobs.running, step=81, phase_done=81)
    expect(row).to_contain_text("81 of 240")
    assert row.get_attribute("data-version") != before
    expect(row.get_by_role("checkbox")).to_be_focused()
    added = site.client.post(f"/jobs/{site.jobs.queued}/clone", json={"name": "Came later"}).json()["id"]
    expect(tab.locator("#jobs tbody tr").first).to_have_attribute("id", added)
    site.client.post(f"/jobs/{added}/cancel")
    expect(tab.locator(f"#{added}")).to_contain_text("cancelled")
    site.client.delete(f"/jobs/{added}")
    expect(tab.locator(f"#{added}")).to_have_count(0)
    assert tab.evaluate("window.isSameDocument")


def test_a_tick_fetches_only_what_is_new(tab: Page, site: Site) -> None:
    tab.goto(f"{site.url}/ui/jobs/{site.jobs.running}", wait_until="networkidle")
    expect(tab.locator(".plot").first).to_be_visible()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    step = site.client.get(f"/jobs/{site.jobs.running}").json()["step"]
    add_curves(site.database, site.jobs.running, step + 2, datetime.now(UTC), first=step + 1)
    with tab.expect_request(lambda request: "/metrics" in request.url):
        set_job(site.database, site.jobs.running, step=step + 2)
    expect(tab.locator("#summary")).to_contain_text(f"{step + 2} of")
    metrics = [url for url in asked if "/metrics" in url]
    assert metrics
    first_steps = [int(re.findall(r"from_step=(\d+)", url)[0]) for url in metrics]
    assert min(first_steps) > step - 2, "a tick asked for points that the page has"
    asked.clear()
    with tab.expect_request(lambda request: f"from_step={step - 20}&" in f"{request.url}&"):
        set_job(site.database, site.jobs.running, step=step - 20)  # a resumed run repeats its last steps
    expect(tab.locator("#summary")).to_contain_text(f"{step - 20} of")
    assert all("from_step=" in url for url in asked if "/metrics" in url), "all curves were fetched again"
    set_job(site.database, site.jobs.running, step=step + 2)


def test_a_metric_that_was_recorded_once_is_a_number_until_it_has_a_second_point(tab: Page, site: Site) -> None:
    def record(step: int, **values: float) -> None:
        common = {"job_id": site.jobs.finished, "step": step, "at": datetime.now(UTC)}
        rows = [common | {"name": name, "value": value} for name, value in values.items()]
        with site.database.write() as session:
            session.execute(MetricPoint.__table__.insert(), rows)

    record(0, rollout_accuracy=0.25, refined_accuracy=0.75, kept_share=0.5)
    tab.goto(f"{site.url}/ui/jobs/{site.jobs.finished}", wait_until="networkidle")
    row = tab.locator("#numbers tr", has_text="Accuracy, by round")
    expect(row).to_have_text("Accuracy, by round0y_o 0.25 · y_r 0.75")
    expect(tab.locator(".plot", has_text="Accuracy, by round")).to_have_count(0)
    record(40, rollout_accuracy=0.3, refined_accuracy=0.8)
    tab.reload(wait_until="networkidle")
    plot = tab.locator(".plot", has_text="Accuracy, by round")
    expect(plot).to_have_attribute("aria-label", "Accuracy, by round: at step 40, y_o 0.3, y_r 0.8")
    expect(tab.locator("#numbers tbody tr")).to_have_text(["Kept share00.5"])


def test_several_jobs_are_cancelled_and_deleted_from_the_keyboard(tab: Page, site: Site) -> None:
    made = [site.client.post(f"/jobs/{site.jobs.queued}/clone", json={"name": n}).json()["id"] for n in ("one", "two")]
    tab.goto(site.url)
    for id in made:
        tab.get_by_label(f"Select {'one' if id == made[0] else 'two'}", exact=True).press("Space")
    expect(tab.get_by_text("2 selected")).to_be_visible()
    tab.get_by_role("button", name="Cancel").press("Enter")
    expect(tab.get_by_role("status")).to_contain_text("2 of 2 jobs")
    assert {site.client.get(f"/jobs/{id}").json()["status"] for id in made} == {JobStatus.CANCELLED}
    for name in ("one", "two"):
        tab.get_by_label(f"Select {name}", exact=True).press("Space")
    tab.get_by_role("button", name="Delete").press("Enter")
    tab.get_by_role("dialog").get_by_role("button", name="Delete").press("Enter")
    expect(tab.locator(f"#{made[0]}")).to_have_count(0)
    assert site.client.get(f"/jobs/{made[1]}").status_code == 404


def test_a_point_of_a_plot_leads_to_its_trajectories(tab: Page, site: Site) -> None:
    tab.goto(f"{site.url}/ui/jobs/{site.jobs.finished}", wait_until="networkidle")
    tab.route("**/trajectories?*", lambda route: route.fulfill(body="reached"))
    tab.locator(".plot .clickable").first.click()
    expect(tab).to_have_url(re.compile(rf"/ui/jobs/{site.jobs.finished}/trajectories\?step=1[12]\d$"))


def test_a_job_is_made_from_uploaded_rows(tab: Page, site: Site, tmp_path: Path) -> None:
    bad, good = tmp_path / "<img onerror=1>.jsonl", tmp_path / "good.jsonl"
    bad.write_text('{"problem": "1 + 1"}\n{"problem": "", "answer": "<script>document.title=1</script>"}\n')
    good.write_text(ROWS)
    tab.goto(f"{site.url}/ui/new")
    tab.get_by_label("Upload").set_input_files(bad)
    with_faults = tab.locator("#upload-faults")
    expect(with_faults).to_contain_text("was not stored")
    expect(with_faults).to_contain_text("Row 1: answer")
    site.faults.clear()  # Chromium writes the refusal to the console
    tab.get_by_label("Upload").set_input_files(good)
    expect(with_faults).to_contain_text("40 rows are in order")
    tab.locator("#student").select_option("tiny-student")
    tab.locator("#teacher").select_option("tiny-teacher")
    tab.locator("#task").select_option("exact")
    tab.get_by_role("button", name="Show the first row's").click()
    expect(tab.locator("#prompts")).to_contain_text("tokens")
    tab.get_by_text("run 9 fields").click()
    tab.get_by_label("rounds", exact=True).fill("0")
    tab.get_by_role("button", name="Dry run").click()
    expect(tab.locator("#faults")).to_contain_text("rounds = 0")
    expect(tab.get_by_label("rounds", exact=True)).to_have_attribute("aria-invalid", "true")
    site.faults.clear()
    tab.get_by_label("rounds", exact=True).fill("2")
    tab.get_by_role("button", name="Dry run").click()
    expect(tab.locator("#estimate")).to_contain_text("This job would be accepted")
    tab.get_by_role("button", name="Submit").click()
    expect(tab).to_have_url(re.compile(r"/ui/jobs/job_\w+$"))
    assert site.client.get(f"/jobs/{tab.url.rpartition('/')[2]}").json()["spec"]["rounds"] == 2


def test_an_admin_makes_and_revokes_a_key(tab: Page, site: Site) -> None:
    tab.goto(f"{site.url}/ui/system")
    tab.get_by_role("textbox", name="Name").fill("<b>mine</b>")
    tab.get_by_role("button", name="Make a key").click()
    key = tab.locator("#key-text").inner_text()
    assert site.client.get("/jobs", headers={"authorization": f"Bearer {key}"}).status_code == 200
    tab.reload()
    revoke = tab.get_by_role("button", name="Revoke <b>mine</b>")
    revoke.click()
    revoke.click()
    expect(tab.get_by_text("revoked", exact=False).first).to_be_visible()
    assert site.client.get("/jobs", headers={"authorization": f"Bearer {key}"}).status_code == 401
