"""Chats on the real small models: an idle worker answers, keeps the models, and gives way to jobs."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.ids import ANSWER_PREFIX, new_id
from contract.job_state import JobStatus
from contract.json_logs import JsonFormatter, log_ids
from contract.messages import DEFAULT_QUEUE
from contract.tables import ChatAnswer
from tests.service.records import add_checkpoint
from tests.worker.workbench import Workbench, eventually
from worker.attempt import Slot
from worker.chats.model_process import ModelProcess
from worker.supervisor import run_next

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[2] / "testbed" / "models"


def ask(bench: Workbench, job_id: str, model: str, content: str = "2*3", **changes: Any) -> str:
    question = {"messages": [{"role": "user", "content": content}], "temperature": 0.0, "max_new_tokens": 64}
    row = ChatAnswer(
        id=new_id(ANSWER_PREFIX), owner="o", job_id=job_id, step=4, model=model, queue=DEFAULT_QUEUE,
        question={**question, **changes}, wanted_until=datetime.now(UTC) + timedelta(minutes=10),
    )  # fmt: skip
    with bench.database.write() as session:
        session.add(row)
    return row.id


def answer_of(bench: Workbench, answer_id: str) -> ChatAnswer:
    with bench.database.read() as session:
        row = session.get(ChatAnswer, answer_id)
        assert row is not None
        return row


def ended(bench: Workbench, answer_id: str) -> ChatAnswer:
    row: ChatAnswer = eventually(
        lambda: row if (row := answer_of(bench, answer_id)).end is not None else None, seconds=240
    )
    return row


@contextmanager
def idle_worker(bench: Workbench, **settings: Any) -> Iterator[Slot]:
    """Run a worker that looks for work until the block ends."""
    slot = bench.slot(chat_idle_seconds=240.0, **settings)

    def work() -> None:
        while not slot.stopping.wait(0.1):
            run_next(slot)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield slot
    finally:
        slot.stopping.set()
        thread.join(60)
        slot.close()
    assert not thread.is_alive()


def finished_job(bench: Workbench, **spec: Any) -> str:
    job_id = bench.add_job(spec=spec, status=JobStatus.SUCCEEDED)
    files = {f"model/{path.name}": path.read_bytes() for path in (MODELS / "tiny-teacher").iterdir() if path.is_file()}
    add_checkpoint(bench.database, bench.settings.data_dir / "storage", job_id, 4, {**files, "state/x": b"not fetched"})
    return job_id


def test_all_three_models_answer_and_stay_loaded_until_a_job_comes(sqlite_bench: Workbench) -> None:
    job_id = finished_job(sqlite_bench)
    with idle_worker(sqlite_bench) as slot:
        first = [ask(sqlite_bench, job_id, model) for model in ("checkpoint", "base", "teacher")]
        rows = [ended(sqlite_bench, answer) for answer in first]
        assert [row.end.keys() for row in rows if row.end] == [{"num_tokens", "is_truncated"}] * 3, [
            r.end for r in rows
        ]
        assert rows[0].text == rows[2].text != "", "the checkpoint's files are the teacher's"
        assert {row.worker for row in rows} == {slot.name}
        folders = list((slot.settings.scratch_dir / "chats").iterdir())
        assert [path.name for path in folders[0].glob("step-4/*state*")] == []
        again = ended(sqlite_bench, ask(sqlite_bench, job_id, "base", "1+1", max_new_tokens=2))
        assert again.end == {"num_tokens": 2, "is_truncated": True}
        assert list((slot.settings.scratch_dir / "chats").iterdir()) == folders, "the models stayed loaded"
        other = sqlite_bench.add_job()
        eventually(lambda: sqlite_bench.job(other).status != "queued", seconds=60)
        assert list((slot.settings.scratch_dir / "chats").iterdir()) == []


def test_what_cannot_be_answered_has_a_reason(sqlite_bench: Workbench) -> None:
    job_id = finished_job(sqlite_bench)
    absent = finished_job(sqlite_bench, student="absent", teacher={"endpoint": "gone"})
    with idle_worker(sqlite_bench):
        reasons = {
            name: (ended(sqlite_bench, answer).end or {})["error"]
            for name, answer in (
                ("two turns", ask(sqlite_bench, job_id, "base", messages=[{"role": "x", "content": "y"}] * 3)),
                ("too long", ask(sqlite_bench, job_id, "base", "1+" * 30_000)),
                ("no model", ask(sqlite_bench, absent, "base")),
                ("no endpoint", ask(sqlite_bench, absent, "teacher")),
            )
        }
        assert "cannot be answered" in reasons["two turns"]
        assert "the model's context" in reasons["too long"]
        assert "'absent' is not in this worker's TRD_MODELS" in reasons["no model"]
        assert "'gone' is not in this worker's TRD_TEACHER_ENDPOINTS" in reasons["no endpoint"]


def test_what_a_model_prints_is_logged_with_the_chats_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(caplog.handler, "formatter", JsonFormatter())
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # the interpreter prints at once
    with log_ids(job_id="job_1", answer="answer_1"):
        model = ModelProcess("nowhere", tmp_path / "log")
    eventually(lambda: (tmp_path / "log").stat().st_size)
    model.close()
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    assert {(line["logger"], line["job_id"], line["answer"]) for line in lines} == {("engine", "job_1", "answer_1")}
    assert any("import time" in line["message"] for line in lines)


def test_a_reader_who_goes_away_stops_the_model(sqlite_bench: Workbench) -> None:
    job_id = finished_job(sqlite_bench)
    with idle_worker(sqlite_bench) as slot:
        long = ask(sqlite_bench, job_id, "checkpoint", temperature=2.0, max_new_tokens=4000)
        eventually(lambda: answer_of(sqlite_bench, long).is_loaded, seconds=240)
        with sqlite_bench.database.write() as session:
            session.delete(session.get(ChatAnswer, long))
        follower = ended(sqlite_bench, ask(sqlite_bench, job_id, "base"))
        assert follower.end is not None
        assert follower.worker == slot.name


def test_a_job_need_not_wait_until_a_model_is_loaded(sqlite_bench: Workbench) -> None:
    job_id = finished_job(sqlite_bench)
    with idle_worker(sqlite_bench):
        answer = ask(sqlite_bench, job_id, "base")
        eventually(lambda: answer_of(sqlite_bench, answer).worker is not None)
        job = sqlite_bench.add_job()
        assert "A job took the worker" in (ended(sqlite_bench, answer).end or {})["error"]
        eventually(lambda: sqlite_bench.job(job).status != "queued", seconds=60)
