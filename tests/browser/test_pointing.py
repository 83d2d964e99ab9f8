"""A script opens places in a person's open tab, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from client import Client
from tests.browser.conftest import Site
from tests.browser.scenario import HOSTILE, MODELS
from tests.browser.test_trajectories import add_pair
from tests.service.conftest import ADMIN_KEY
from tests.service.records import submit

pytestmark = pytest.mark.extended


def expect_marked(tab: Page, text: str) -> None:
    """Wait until this text is highlighted."""
    found = ""
    for _ in range(100):  # the policy of the pages forbids wait_for_function
        found = tab.evaluate("[...(CSS.highlights.get('asked') ?? [])].map(String).join()")
        if found == text:
            return
        tab.wait_for_timeout(100)
    assert found == text


def test_an_open_tab_follows_a_script_to_a_token_and_a_text(tab: Page, site: Site) -> None:
    job_id = submit(site.client, **MODELS)
    words = ["so ", "1 ", "is ", "wrong ", HOSTILE, "and ", "there"]
    add_pair(site, job_id, 0, words)
    tab.goto(site.url)
    with Client(site.url, ADMIN_KEY) as trd:
        assert trd.view(job_id, "0:0", token=2, text="corrected", wait_seconds=20).is_opened
        expect(tab.locator("#token")).to_contain_text("token 2 of y_o")
        expect_marked(tab, "corrected")
        place = trd.view(job_id, "0:0", side="refined", token=5, text=HOSTILE, wait_seconds=20)
        assert place.is_opened
        expect(tab.locator("#token")).to_contain_text("token 5 of y_r")
        expect_marked(tab, HOSTILE)
        assert tab.title() != "owned"
        assert tab.url == site.url + place.path
        tab.evaluate("CSS.highlights.clear()")
        assert trd.view(job_id, "0:0", side="refined", token=5, text=HOSTILE, wait_seconds=20).is_opened
        expect_marked(tab, HOSTILE)  # the same place once more
        assert trd.view(job_id, page="spec", text="tiny-teacher", wait_seconds=20).is_opened
        expect(tab).to_have_url(f"{site.url}/ui/jobs/{job_id}/spec#text=tiny-teacher")
        expect_marked(tab, "tiny-teacher")
        tab.goto(f"{site.url}/ui/new")
        assert not trd.view(job_id, wait_seconds=3).is_opened, "what was typed would be lost"
