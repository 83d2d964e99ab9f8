"""Chats with a checkpoint, its base model and its teacher, in a real browser, answered by the real small models."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from client import Client
from contract.job_state import JobStatus
from contract.tables import ChatAnswer
from contract.views.chats import AnswerEnd, AnswerPiece
from tests.browser.conftest import Site
from tests.browser.scenario import HOSTILE, MODELS
from tests.service.conftest import ADMIN_KEY
from tests.service.records import add_checkpoint, set_job, submit
from tests.service.test_chats import scripted_worker
from worker.attempt import Slot
from worker.settings import WorkerSettings
from worker.supervisor import run_next

pytestmark = pytest.mark.extended

QUEUE = "chats"
TEACHER = Path(__file__).parents[2] / "testbed" / "models" / "tiny-teacher"


@pytest.fixture(scope="module")
def job_id(site: Site) -> str:
    """A job whose checkpoint is the tiny teacher, in a separate queue."""
    job_id = submit(site.client, **MODELS, name="To be tried")
    set_job(site.database, job_id, status=JobStatus.SUCCEEDED, queue=QUEUE)
    files = {f"model/{path.name}": path.read_bytes() for path in TEACHER.iterdir() if path.is_file()}
    add_checkpoint(site.database, data_dir_of(site) / "storage", job_id, 4, files)
    return job_id


def data_dir_of(site: Site) -> Path:
    return Path(site.database.engine.url.database or "").parent


def answers(site: Site) -> list[Any]:
    with site.database.read() as session:
        return list(session.scalars(select(ChatAnswer.model).where(ChatAnswer.queue == QUEUE)))


def eventually_none(tab: Page, site: Site) -> None:
    for _ in range(200):
        if not answers(site):
            return
        tab.wait_for_timeout(100)
    assert answers(site) == []


@contextmanager
def worker(site: Site) -> Iterator[None]:
    """Run a worker of the queue."""
    folder = data_dir_of(site)
    settings = WorkerSettings(
        data_dir=folder,
        database_url=f"sqlite:///{folder / 'trd.db'}",
        storage_url=f"file://{folder / 'storage'}",
        queues=(QUEUE,),
    )
    slot = Slot(settings)

    def work() -> None:
        while not slot.stopping.wait(0.1):
            run_next(slot)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        slot.stopping.set()
        thread.join(120)
        slot.close()


def open_page(tab: Page, site: Site, job_id: str) -> None:
    tab.goto(f"{site.url}/ui/jobs/{job_id}/checkpoints")
    tab.get_by_role("link", name="Try it").click()
    expect(tab.locator("#ask[data-ready]")).to_be_visible()


def test_all_three_models_answer_in_the_browser_and_in_the_client(tab: Page, site: Site, job_id: str) -> None:
    open_page(tab, site, job_id)
    panels = tab.locator(".chat")
    expect(panels).to_have_count(3)
    tab.get_by_label("Your question").fill("2*3")
    tab.keyboard.press("Control+Enter")
    for panel in panels.all():
        expect(panel).to_contain_text(f"No worker runs for the queue {QUEUE}")
    with worker(site):
        for panel in panels.all():
            expect(panel.locator(".state")).to_contain_text("tokens", timeout=300_000)
            expect(panel.locator(".turn.user")).to_have_text("2*3")
            expect(panel.locator(".turn.assistant")).not_to_be_empty()
        checkpoint, _, teacher = [panel.locator(".turn.assistant").inner_text() for panel in panels.all()]
        assert checkpoint == teacher, "the checkpoint's files are the teacher's"
        with Client(site.url, ADMIN_KEY) as trd:
            parts = list(trd.checkpoints.chat(job_id, 4, [{"role": "user", "content": "2*3"}], model="teacher"))
        assert "".join(part.text for part in parts if isinstance(part, AnswerPiece)) == teacher
        assert isinstance(parts[-1], AnswerEnd)
    assert answers(site) == []


def test_what_a_model_writes_is_text_and_stop_ends_it(tab: Page, site: Site, job_id: str) -> None:
    open_page(tab, site, job_id)
    ends = [{"num_tokens": 3}, {"error": HOSTILE}, {"num_tokens": 9, "is_truncated": True}]
    scripted = [scripted_worker(site.database, "a ", HOSTILE, end=end, queue=QUEUE) for end in ends]
    tab.get_by_label("Your question").fill(HOSTILE)
    tab.get_by_role("button", name="Send").click()
    for thread in scripted:
        thread.join(60)
    expect(tab.locator(".turn.assistant")).to_have_text([f"a {HOSTILE}"] * 3)
    expect(tab.locator(".turn.user")).to_have_text([HOSTILE] * 3)
    expect(tab.locator(".state", has_text="Answering")).to_have_count(0)  # the ends follow the texts
    states = sorted(tab.locator(".state").all_inner_texts())
    assert states == sorted(["3 tokens", HOSTILE, "9 tokens, cut off at the longest answer"])
    assert tab.title() != "owned"
    assert tab.locator("main img").count() == 0
    tab.get_by_label("Your question").fill("again")
    tab.get_by_role("button", name="Send").click()
    for state in tab.locator(".state").all():
        expect(state).to_contain_text("No worker")
    assert len(answers(site)) == 3
    tab.get_by_role("button", name="Stop").click()
    expect(tab.locator(".state").first).to_have_text("Stopped.")
    eventually_none(tab, site)
    tab.get_by_label("Your question").fill("and again")
    tab.get_by_role("button", name="Send").click()
    expect(tab.locator(".state").first).to_contain_text("No worker")
    tab.goto(site.url)
    eventually_none(tab, site)
