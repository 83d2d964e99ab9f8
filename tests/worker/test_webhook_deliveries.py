"""Deliveries are stored with the event, sent at least once, verified by the library, and never delay a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from standardwebhooks import Webhook as Verifier

from contract.events import NewEvent, append_events, notice
from contract.ids import WEBHOOK_PREFIX, new_id
from contract.job_state import JobStatus
from contract.tables import Webhook, WebhookDelivery
from tests.worker.webhook_receiver import Receiver, receiver
from tests.worker.workbench import Workbench, eventually
from trd_data import network_address
from worker.attempt import Slot
from worker.supervisor import run_next
from worker.webhooks import sender
from worker.webhooks.sender import make_sender, send_due

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
AT_ONCE = (0.0,) * 8


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def add_webhook(bench: Workbench, url: str, *event_types: str, owner: str = "tester", is_enabled: bool = True) -> str:
    webhook_id = new_id(WEBHOOK_PREFIX)
    row = {"id": webhook_id, "owner": owner, "url": url, "event_types": list(event_types), "is_enabled": is_enabled}
    with bench.database.write() as session:
        session.execute(insert(Webhook).values(**row, secret=SECRET, created_at=datetime.now(UTC)))
    return webhook_id


def deliveries(bench: Workbench, webhook_id: str) -> list[WebhookDelivery]:
    with bench.database.read() as session:
        query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
        return list(session.scalars(query.order_by(WebhookDelivery.id)))


def report(bench: Workbench, job_id: str, *events: NewEvent) -> None:
    with bench.database.write() as session:
        append_events(session, job_id, *events)


def ended(status: JobStatus = JobStatus.SUCCEEDED) -> NewEvent:
    return NewEvent("status", f"The job has {status}.", {"status": status})


def slot_of(bench: Workbench) -> Slot:
    return bench.slot(webhook_network="loopback", webhook_seconds=0.05)


def verified(got: Any) -> dict[str, Any]:
    """Check the signature, and return the document."""
    document: dict[str, Any] = Verifier(SECRET).verify(got.body, got.headers)
    return document


def test_a_job_reports_to_its_owners_webhooks(bench: Workbench, there: Receiver) -> None:
    every = add_webhook(bench, there.url("good"))
    some = add_webhook(bench, there.url("some?token=a%20b"), "job.succeeded", "job.checkpoint")
    others = [
        add_webhook(bench, there.url("other"), owner="somebody else"),
        add_webhook(bench, there.url("off"), is_enabled=False),
    ]
    job_id = bench.add_job()
    slot = slot_of(bench)
    assert run_next(slot)
    while send_due(slot):
        pass
    received = [verified(got) for got in there.at("good")]
    kinds = [document["type"] for document in received]
    assert kinds[0] == "job.running"
    assert kinds[-1] == "job.succeeded"
    assert {"job.checkpoint", "job.evaluation"} <= set(kinds)
    assert received[-1]["data"]["job_id"] == job_id
    assert received[-1]["data"]["status"] == "succeeded"
    assert [d["data"]["sequence"] for d in received] == sorted(d["data"]["sequence"] for d in received)
    assert datetime.fromisoformat(received[-1]["timestamp"]).tzinfo is not None
    assert {verified(got)["type"] for got in there.at("some")} == {"job.succeeded", "job.checkpoint"}
    assert {got.path for got in there.at("some")} == {"/some?token=a%20b"}
    assert [deliveries(bench, webhook_id) for webhook_id in others] == [[], []]
    for row in (*deliveries(bench, every), *deliveries(bench, some)):
        assert (row.status, row.response_status, row.response_head, row.num_tries) == ("delivered", 200, "thanks", 1)
        assert row.due_at is None
        assert row.latency_seconds is not None
    assert {got.headers["webhook-id"] for got in there.at("good")} == {d.id for d in deliveries(bench, every)}


def test_an_event_that_is_rolled_back_is_not_delivered(bench: Workbench, there: Receiver) -> None:
    webhook_id = add_webhook(bench, there.url("good"))
    job_id = bench.add_job()

    def report_and_fail() -> None:
        with bench.database.write() as session:
            append_events(session, job_id, ended())
            raise RuntimeError("for the test")

    with pytest.raises(RuntimeError, match="for the test"):
        report_and_fail()
    report(bench, job_id, notice("info", "harmless", "Not for webhooks."), NewEvent("phase", "Phase training."))
    assert deliveries(bench, webhook_id) == []


def test_hostile_receivers_delay_nobody(
    sqlite_bench: Workbench, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "ANSWER_SECONDS", 1.0)
    ids = {path: add_webhook(sqlite_bench, there.url(path)) for path in ("hang", "endless", "redirect", "down", "good")}
    ids["closed"] = add_webhook(sqlite_bench, "http://127.0.0.1:9/")
    report(sqlite_bench, sqlite_bench.add_job(), ended())
    started = time.monotonic()
    assert send_due(slot_of(sqlite_bench)) == len(ids)
    assert time.monotonic() - started < 8
    found = {path: deliveries(sqlite_bench, webhook_id)[0] for path, webhook_id in ids.items()}
    shown = {path: (row.status, row.response_status) for path, row in found.items()}
    assert shown == {
        "hang": ("pending", None),
        "endless": ("delivered", 200),
        "redirect": ("pending", 302),
        "down": ("pending", 500),
        "closed": ("pending", None),
        "good": ("delivered", 200),
    }
    assert len(there.at("good")) == 1, "the redirect was followed"
    assert found["endless"].response_head == "x" * sender.MAX_HEAD_BYTES
    assert found["down"].response_head == "out of order"
    assert found["hang"].error == "no complete answer within 1 s"
    assert "ConnectError" in (found["closed"].error or "")
    for path in ("hang", "redirect", "down", "closed"):
        due_at, tried_at = found[path].due_at, found[path].tried_at
        assert due_at is not None
        assert tried_at is not None
        assert 4 < (due_at - tried_at).total_seconds() < 6, "the first delay is 5 s"


def test_tries_are_repeated_with_the_same_id_and_end(bench: Workbench, there: Receiver) -> None:
    webhook_id = add_webhook(bench, there.url("down"))
    job_id = bench.add_job()
    report(bench, job_id, ended(JobStatus.FAILED))
    slot = slot_of(bench)
    for _ in range(3):
        assert send_due(slot, retry_seconds=AT_ONCE) == 1
    there.is_up = True
    assert send_due(slot, retry_seconds=AT_ONCE) == 1
    assert send_due(slot) == 0
    (row,) = deliveries(bench, webhook_id)
    assert (row.status, row.num_tries) == ("delivered", 4)
    assert len({(got.headers["webhook-id"], got.body) for got in there.at("down")}) == 1
    there.is_up = False
    report(bench, job_id, ended())
    for _ in range(3):
        assert send_due(slot, retry_seconds=(0.0, 0.0)) == 1
    assert send_due(slot) == 0
    assert deliveries(bench, webhook_id)[1].status == "failed"


def test_a_killed_senders_delivery_is_sent_again(
    bench: Workbench, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook_id = add_webhook(bench, there.url("hang"))
    report(bench, bench.add_job(), ended())
    script = (
        "import sys; from worker.attempt import Slot; from worker.settings import WorkerSettings\n"
        "from worker.webhooks.sender import send_due; send_due(Slot(WorkerSettings.from_environment()))"
    )
    database_url = bench.settings.database_url
    environment = {"DATABASE_URL": database_url, "TRD_WEBHOOK_NETWORK": "loopback"}
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **environment})
    try:
        eventually(lambda: there.at("hang"))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    slot = slot_of(bench)
    assert send_due(slot) == 0, "it is claimed by the sender that was killed"
    with bench.database.write() as session:  # the claim is over
        past = datetime(2020, 1, 1, tzinfo=UTC)
        session.execute(update(WebhookDelivery).values(due_at=past))
        session.execute(update(Webhook).values(url=there.url("good")))
    assert send_due(slot) == 1
    (row,) = deliveries(bench, webhook_id)
    assert (row.status, row.num_tries) == ("delivered", 2)
    first, again = there.at("hang")[0], there.at("good")[0]
    assert first.headers["webhook-id"] == again.headers["webhook-id"] == row.id
    assert verified(again) == verified(first)


def test_senders_do_not_send_twice_and_the_thread_stops(bench: Workbench, there: Receiver) -> None:
    webhook_id = add_webhook(bench, there.url("good"))
    job_id = bench.add_job()
    slots = [slot_of(bench) for _ in range(3)]
    threads = [make_sender(slot) for slot in slots]
    for thread in threads:
        thread.start()
    for _ in range(10):
        report(bench, job_id, ended())
    eventually(lambda: {row.status for row in deliveries(bench, webhook_id)} == {"delivered"})
    for slot, thread in zip(slots, threads, strict=True):
        slot.stopping.set()
        thread.join(10)
    assert len(there.at("good")) == 10
    assert {row.num_tries for row in deliveries(bench, webhook_id)} == {1}


def test_a_name_that_now_leads_elsewhere_is_not_called(
    sqlite_bench: Workbench, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = there.server_address[1]
    webhook_id = add_webhook(sqlite_bench, f"http://receiver.test:{port}/good")
    answers = iter(["127.0.0.1", "10.0.0.1"])
    monkeypatch.setattr(network_address, "_resolve", lambda host, port: [next(answers)])
    job_id = sqlite_bench.add_job()
    slot = slot_of(sqlite_bench)
    report(sqlite_bench, job_id, ended())
    send_due(slot)
    assert there.at("good")[0].headers["host"] == f"receiver.test:{port}", "one resolution, and its address was called"
    report(sqlite_bench, job_id, ended())
    send_due(slot)
    assert len(there.at("good")) == 1
    assert deliveries(sqlite_bench, webhook_id)[1].error == "the address leads outside its network, which is loopback"
