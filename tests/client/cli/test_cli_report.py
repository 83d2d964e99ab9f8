"""``trd report``: one page without scripts and requests, on which text of data stays text."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from client.cli.report import MAX_JOBS
from contract.score_difference import score_difference
from contract.views.runs import EvaluationView
from tests.client.cli.conftest import Run
from tests.client.conftest import RunningService
from tests.service.conftest import AUTHORIZED
from tests.service.finished_job import add_finished_job
from tests.service.records import add_trajectory, submit

HOSTILE = "</pre><script>alert(1)</script><img src=https://example.com/x>&amp; $a$ \u202e"


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def jobs(service: RunningService) -> list[str]:
    """Two finished jobs, one with hostile text wherever text is."""
    with httpx.Client(base_url=service.url, headers=AUTHORIZED) as client:
        models = {"student": "small", "teacher": "small-teacher"}
        name = HOSTILE.replace("\u202e", "")
        changes = {**models, "name": name, "metadata": {"<b>": name}, "seed": 7}
        made = [add_finished_job(client, service.database, service.storage_dir, **one) for one in (changes, models)]
        texts = {"prompt": HOSTILE, "answer": HOSTILE, "rollout": f"same {HOSTILE}", "refined": f"same{HOSTILE}"}
        add_trajectory(service.database, made[0], 1, verdicts=(True, False), problem_id=HOSTILE[:90], **texts)  # type: ignore[arg-type]
    return made


def test_a_page_of_one_run(run: Run, jobs: list[str], tmp_path: Path) -> None:
    done = run("report", jobs[0], "--out", str(tmp_path / "one.html"), "--png", "--json")
    assert done.code == 0, done.err
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"} == set()
    assert page.text.count("<script>alert(1)</script>") >= 5, "name, prompt, answer, y_o and y_r"
    assert "\u202e" not in text
    sources = [
        value or "" for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert sources
    for source in sources:
        image = base64.b64decode(source.removeprefix("data:image/svg+xml;base64,"), validate=True)
        svg = ET.fromstring(image)
        assert svg.tag.endswith("svg")
        assert re.findall(rb'(?:href|src)="(?!#)', image) == []
    assert "+30.0 [+15.9, +44.1]" in " ".join(page.text.split())
    assert "fail to pass" in page.text
    assert "pass to fail" in page.text
    assert re.search(r"seed\s*7", page.text)
    written = [Path(path) for path in done.json["files"]]
    assert [path.suffix for path in written] == [".html"] + [".png"] * len(sources)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])


def test_a_comparison_and_jobs_without_results(
    run: Run, jobs: list[str], service: RunningService, tmp_path: Path
) -> None:
    with httpx.Client(base_url=service.url, headers=AUTHORIZED) as client:
        empty = submit(client)
    done = run("report", *jobs, empty, "--out", str(tmp_path / "all.html"))
    assert done.code == 0, done.err
    page = Page((tmp_path / "all.html").read_text(encoding="utf-8"))
    words = " ".join(page.text.split())
    assert "Comparison of" in words
    assert "+0.0 [-14.1, +14.1]" in words, "final scores against the first"
    bold = [attributes for tag, attributes in page.tags if tag == "strong"]
    assert len(bold) >= 2, "the seeds differ"
    refused = run("report", *jobs * MAX_JOBS, "--out", str(tmp_path / "no.html"))
    assert refused.code != 0
    assert "at most 6" in refused.err


def test_the_interval_of_a_difference() -> None:
    def scores(value: float, low: float, high: float) -> EvaluationView:
        named = {"avg_at_k": value, "avg_low": low, "avg_high": high}
        named |= {"pass_at_k": 0.5, "pass_low": 0.5, "pass_high": 0.5}
        now = datetime.now(UTC)
        return EvaluationView(step=0, dataset="d", k=1, num_problems=9, detail={}, created_at=now, **named)

    # Newcombe 1998, table II (a), method 10: 56/70 against 48/80 with Wilson's intervals.
    found = score_difference(scores(48 / 80, 0.49042, 0.70041), scores(56 / 70, 0.69188, 0.87709))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-4)
    assert found.is_clear
    assert not score_difference(scores(0.5, 0.4, 0.6), scores(0.55, 0.45, 0.65)).is_clear
