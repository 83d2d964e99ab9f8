"""The list of trajectories, a pair token by token, and probe samples, in a real browser."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site
from tests.browser.scenario import HOSTILE, MODELS
from tests.service.records import add_probe_sample, add_trajectory, submit

pytestmark = pytest.mark.extended

LIKELY = {"token": 3, "student": [["<i>3</i>", 0.9], ["2", 0.1]], "teacher": [["2", 0.8]]}


def add_pair(site: Site, job_id: str, position: int, words: list[str], **values: Any) -> None:
    """Add a diagnosed trajectory whose third word differs in its refinement."""
    refined = [*words[:3], "corrected ", *words[4:]]
    detail = {
        "lengths": {"rollout": [len(word) for word in words], "refined": [len(word) for word in refined]},
        "alternatives": {"rollout": [LIKELY], "refined": None},
        "first_wrong_step": [3, 5],
    }
    kl = {"rollout": [0.0, 0.02, 0.2, 5.0, *[0.0] * (len(words) - 4)], "refined": [0.0] * len(words)}
    texts = {"rollout": "".join(words), "refined": "".join(refined)}
    tokens = {"rollout_tokens": len(words), "refined_tokens": len(words), "parts_at_token": 3}
    add_trajectory(site.database, job_id, position, token_kl=kl, token_detail=detail, **texts, **tokens, **values)


def test_the_list_has_filters_pages_and_keys(tab: Page, site: Site) -> None:
    job_id = submit(site.client, **MODELS)
    for position in range(60):
        verdicts = (position % 2 == 0, True)
        add_trajectory(
            site.database, job_id, position, verdicts=verdicts, rollout=f"rollout {position}", step=1 + position // 30
        )
    tab.goto(f"{site.url}/ui/jobs/{job_id}/trajectories")
    rows = tab.locator("#pairs tbody tr")
    expect(rows).to_have_count(25)
    tab.get_by_role("link", name="Later").click()
    expect(rows.first).to_contain_text("rollout 25")
    tab.get_by_role("link", name="Earlier").click()
    expect(rows.first).to_contain_text("rollout 0")
    tab.get_by_label("wrong → right").check()
    tab.get_by_label("Trained at step").fill("2")
    tab.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(15)
    expect(rows.first).to_contain_text("rollout 31")
    assert "min_tokens=&" in tab.url, "an empty field does not filter"
    tab.get_by_label("Text").fill("ROLLOUT 4")
    tab.keyboard.press("Enter")
    expect(rows).to_have_count(5)
    tab.wait_for_load_state("load")  # the script listens
    tab.locator("h1").click()
    for key in ("j", "j", "k", "j"):
        tab.keyboard.press(key)
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("heading", name="Round 1, trajectory 43")).to_be_visible()
    ready = tab.locator("#pair[data-ready]")  # the script listens
    expect(ready).to_be_visible()
    tab.keyboard.press("j")
    expect(tab.get_by_role("heading", name="Round 1, trajectory 45")).to_be_visible()
    expect(ready).to_be_visible()
    tab.keyboard.press("k")
    expect(tab.get_by_role("heading", name="Round 1, trajectory 43")).to_be_visible()


def test_a_pair_is_shaded_and_explained_token_by_token(tab: Page, site: Site) -> None:
    job_id = submit(site.client, **MODELS)
    add_pair(site, job_id, 0, ["so ", "1 ", "is ", "wrong ", "here ", "and ", "there"])
    address = f"{site.url}/ui/jobs/{job_id}/trajectories/0:0"
    tab.goto(address)
    tokens = tab.locator(".rollout .t")
    expect(tokens).to_have_count(7)
    shades = [re.search(r"k\d", one.get_attribute("class") or "")[0] for one in tokens.all()]  # type: ignore[index]
    assert shades == ["k0", "k1", "k3", "k6", "k0", "k0", "k0"]
    expect(tab.locator("del")).to_have_text("wrong ")
    expect(tab.locator("ins")).to_have_text("corrected ")
    expect(tab.locator(".rollout .t.wrong")).to_have_text(["wrong ", "here "])
    panel = tab.locator("#token")
    tab.keyboard.press("p")
    expect(panel).to_contain_text("token 3 of y_o · KL 5.00 nats · here the two part · in the first wrong step")
    expect(panel).to_contain_text("<i>3</i> 90.0 %")
    tab.locator("#sides").focus()
    tab.keyboard.press("ArrowLeft")
    expect(panel).to_contain_text("token 2 of y_o · KL 0.200 nats")
    tab.locator(".refined .t").nth(5).hover()
    expect(panel).to_contain_text("token 5 of y_r")
    tab.goto(f"{address}#token=refined:6&text=corrected")
    expect(panel).to_contain_text("token 6 of y_r")
    assert tab.evaluate("[...CSS.highlights.get('asked')][0].toString()") == "corrected"
    tab.get_by_role("checkbox", name="Shade").uncheck()
    assert tokens.nth(3).evaluate("one => getComputedStyle(one).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_hostile_text_is_text_in_pairs_and_samples(tab: Page, site: Site) -> None:
    add_pair(
        site, site.jobs.hostile, 7, ["a ", HOSTILE, "\n</span></pre>", HOSTILE, "end"], prompt=HOSTILE, answer=HOSTILE
    )
    add_probe_sample(site.database, site.jobs.hostile, 0, prompt=HOSTILE, completion=HOSTILE)
    job = f"{site.url}/ui/jobs/{site.jobs.hostile}"
    for path in ("trajectories", "trajectories/0:0", "trajectories/0:7", "trajectories?text=<script>", "samples"):
        tab.goto(f"{job}/{path}", wait_until="networkidle")
        assert tab.title() != "owned"
        expect(tab.locator("main")).to_contain_text("<img src=x onerror=")
        assert tab.locator("img[src=x]").count() == 0
    tab.goto(f"{job}/trajectories/0:7#token=1", wait_until="networkidle")
    expect(tab.locator("#token")).to_contain_text("<script>")
    assert tab.title() != "owned"


def test_a_long_pair_is_shown_fast(tab: Page, site: Site) -> None:
    """16,000 tokens a side; only those in view become elements."""
    job_id = submit(site.client, **MODELS)
    add_pair(site, job_id, 0, [f"w{i % 97}{chr(10) if i % 40 == 0 else ' '}" for i in range(16_000)])
    begun = time.monotonic()
    tab.goto(f"{site.url}/ui/jobs/{job_id}/trajectories/0:0")
    expect(tab.locator("#pair[data-ready]")).to_be_visible()
    expect(tab.locator(".rollout .t").first).to_be_visible()
    assert time.monotonic() - begun < 15
    assert tab.locator(".t").count() < 8_000
    tab.goto(f"{site.url}/ui/jobs/{job_id}/trajectories/0:0#token=15000")
    expect(tab.locator("#token")).to_contain_text("token 15000")
    expect(tab.locator(".t.current")).to_be_in_viewport()


def test_samples_follow_the_slider(tab: Page, site: Site) -> None:
    job_id = submit(site.client, **MODELS)
    for step in (0, 10, 20):
        add_probe_sample(site.database, job_id, step, completion=f"answer at {step}", correct=step == 20)
    tab.goto(f"{site.url}/ui/jobs/{job_id}/samples")
    samples = tab.locator("#samples")
    expect(samples).to_contain_text("answer at 20")
    tab.get_by_role("slider").focus()
    tab.keyboard.press("ArrowLeft")
    expect(samples).to_contain_text("answer at 10")
    expect(samples).to_contain_text("answer at 0")
    expect(tab).to_have_url(re.compile(r"step=10$"))
    assert tab.get_by_role("slider").get_attribute("aria-valuetext") == "step 10"
    tab.get_by_role("link", name="20", exact=True).click()
    expect(samples).to_contain_text("answer at 20")
